"""What all methods share in their pass over the vocabulary: from log-probabilities to the loss.

A method decides about `value`, the weighted divergence of each token; everything around it is here.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.entropy import entropy_of
from egad_jax.losses.probabilities import check_labels, check_pair, label_value, log_probabilities
from egad_jax.losses.top_k import Teacher, TopK, coarse_pair, entropy_estimate
from egad_jax.types import Stats


class LogPair(NamedTuple):
  """Student and teacher on the same tokens.

  Divergences read the first four, over `categories`: the vocabulary, or those of a `TopK`.

  Attributes:
    student_logits: [..., categories], at least float32.
    teacher_logits: the same, detached.
    log_q: the student's log-probabilities at T = 1.
    log_p: the teacher's, detached.
    teacher_entropy: [...], nats, at T = 1; of the full distribution, or an estimate of it.
    vocab_log_q: the student's log-probabilities at T = 1 over the vocabulary, [..., vocab]; what
      is about the student alone reads it, and labels index it. `log_q` itself for a dense teacher.
  """

  student_logits: jax.Array
  teacher_logits: jax.Array
  log_q: jax.Array
  log_p: jax.Array
  teacher_entropy: jax.Array
  vocab_log_q: jax.Array


def log_pair(student_logits: ArrayLike, teacher_logits: Teacher) -> LogPair:
  """Checks both and takes their log-probabilities once; see `top_k` for a teacher in that form."""
  if isinstance(teacher_logits, TopK):
    coarse_q, coarse_p = coarse_pair(student_logits, teacher_logits)
    vocab_log_q = log_probabilities(jnp.asarray(student_logits))
    entropy = entropy_estimate(teacher_logits, vocab_log_q.shape[-1])
    log_q, log_p = log_probabilities(coarse_q), log_probabilities(coarse_p)
    return LogPair(coarse_q, coarse_p, log_q, log_p, entropy, vocab_log_q)
  student_logits, teacher_logits = check_pair(student_logits, teacher_logits)
  log_p = log_probabilities(teacher_logits)
  log_q = log_probabilities(student_logits)
  return LogPair(student_logits, teacher_logits, log_q, log_p, entropy_of(log_p), log_q)


def at_temperature(pair: LogPair, temperature: float | jax.Array) -> tuple[jax.Array, jax.Array]:
  """(log_q, log_p) at a temperature, one number or one per token [...]."""
  if isinstance(temperature, float) and temperature == 1:
    return pair.log_q, pair.log_p
  return (
    log_probabilities(pair.student_logits, temperature=temperature),
    log_probabilities(pair.teacher_logits, temperature=temperature),
  )


def token_terms(
  pair: LogPair,
  labels: ArrayLike,
  value: jax.Array,
  *,
  ce_weight: float = 0.0,
  temperature: float | jax.Array = 1.0,
  weight: float | jax.Array = 1.0,
  hard: bool | jax.Array = False,
  **others: jax.Array,
) -> tuple[jax.Array, Stats]:
  """Loss and stats of each token.

  Args:
    pair: the token's distributions.
    labels: int, [...].
    value: the divergence as it enters the loss, weight and factors included, [...].
    ce_weight: of the cross-entropy with the labels, >= 0; 0 leaves it out.
    temperature: at which `value` was taken.
    weight: that is in `value`.
    hard: whether the method treats the token as hard (or selected).
    **others: further stats of the method, each [...].

  Returns:
    (loss [...], stats {name: [...]}), the stats detached: teacher_entropy, student_entropy and
    cross_entropy (nats, T = 1), distillation_loss, temperature, weight, hard (0 to 1) and `others`.
  """
  labels = check_labels(labels, value.shape)
  return loss_and_stats(
    value,
    cross_entropy=-label_value(pair.vocab_log_q, labels),
    teacher_entropy=pair.teacher_entropy,
    student_entropy=entropy_of(jax.lax.stop_gradient(pair.vocab_log_q)),
    ce_weight=ce_weight,
    temperature=temperature,
    weight=weight,
    hard=hard,
    **others,
  )


def loss_and_stats(
  value: jax.Array, *, cross_entropy: jax.Array, ce_weight: float, **others: ArrayLike
) -> tuple[jax.Array, Stats]:
  """The end of `token_terms`, for who has the sums over the vocabulary already.

  Args:
    value: the divergence as it enters the loss, [...].
    cross_entropy: with the labels, nats, [...].
    ce_weight: as for `token_terms`.
    **others: the other stats of `token_terms`, each [...] or one number.
  """
  loss = value + ce_weight * cross_entropy if ce_weight else value
  stats = {"distillation_loss": value, "cross_entropy": cross_entropy, **others}
  return loss, {
    name: jax.lax.stop_gradient(jnp.broadcast_to(jnp.asarray(stat, loss.dtype), loss.shape))
    for name, stat in stats.items()
  }


def check_ce_weight(ce_weight: float) -> None:
  """Raises ValueError unless `ce_weight` is at least 0."""
  if not ce_weight >= 0:
    raise ValueError(f"ce_weight must be >= 0, got {ce_weight}.")
