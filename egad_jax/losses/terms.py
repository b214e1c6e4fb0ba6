"""The part of the token loss that all methods share: log-probabilities, cross-entropy and stats.

A method computes `value`, the weighted divergence of each token; the rest is here.
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
  """The distributions of student and teacher for the same tokens.

  Divergences read the first four fields. Their last axis, `categories`, is the vocabulary, or the
  k + 1 (or k) categories of a `TopK`.

  Attributes:
    student_logits: the student's logits, [..., categories], at least float32.
    teacher_logits: the teacher's logits, same shape, detached.
    log_q: the student's log-probabilities at T = 1, same shape.
    log_p: the teacher's log-probabilities at T = 1, same shape, detached.
    teacher_entropy: the teacher's entropy at T = 1 in nats, [...]; that of the full distribution,
      or an estimate of it for a `TopK`.
    vocab_log_q: the student's log-probabilities at T = 1 over the vocabulary, [..., vocab], for the
      cross-entropy and the student's entropy; `log_q` itself for a dense teacher.
  """

  student_logits: jax.Array
  teacher_logits: jax.Array
  log_q: jax.Array
  log_p: jax.Array
  teacher_entropy: jax.Array
  vocab_log_q: jax.Array


def log_pair(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  teacher_entropy: jax.Array | None = None,
) -> LogPair:
  """Checks both logits and takes log-probabilities once.

  Args:
    student_logits: float, shape [..., vocab].
    teacher_logits: float, same shape, or a `TopK`, see `top_k`. Detached.
    teacher_entropy: the teacher's entropy at T = 1 in nats, [...], if the logits only stand for a
      distribution of which less is known, as those of `top_k.spread_tail`; a token loss gets it as
      `extras["teacher_entropy"]`. None for the entropy of `teacher_logits`.
  """
  if isinstance(teacher_logits, TopK):
    coarse_q, coarse_p = coarse_pair(student_logits, teacher_logits)
    vocab_log_q = log_probabilities(jnp.asarray(student_logits))
    entropy = teacher_entropy
    if entropy is None:
      entropy = entropy_estimate(teacher_logits, vocab_log_q.shape[-1])
    log_q, log_p = log_probabilities(coarse_q), log_probabilities(coarse_p)
    return LogPair(coarse_q, coarse_p, log_q, log_p, entropy, vocab_log_q)
  student_logits, teacher_logits = check_pair(student_logits, teacher_logits)
  log_p = log_probabilities(teacher_logits)
  log_q = log_probabilities(student_logits)
  entropy = entropy_of(log_p) if teacher_entropy is None else teacher_entropy
  return LogPair(student_logits, teacher_logits, log_q, log_p, entropy, log_q)


def at_temperature(pair: LogPair, temperature: float | jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (log_q, log_p), [..., categories], at one temperature or one per token [...]."""
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
  """Returns loss and stats of each token.

  Args:
    pair: the tokens' distributions.
    labels: int, [...], the token that the logits at its index predict.
    value: the divergence as it enters the loss, weight and factors included, [...].
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    temperature: temperature of the divergence in `value`; one number, or one per token [...].
    weight: token weight that `value` includes, likewise.
    hard: whether the method treats the token as hard or selected, or the degree of it, likewise.
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
  """Returns the result of `token_terms` from sums over the vocabulary that the caller has made.

  Args:
    value: the divergence as it enters the loss, [...].
    cross_entropy: cross-entropy with the labels in nats, [...].
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
