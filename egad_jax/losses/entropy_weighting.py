"""SE-KD and EA-KD: methods that select or weight tokens by entropy, the student's included.

Both resemble EGAD's curriculum but use a fixed rule: SE-KD (arXiv 2602.01395) keeps the tokens of
which the student is least sure, EA-KD (arXiv 2311.13621) weights tokens by both models' entropies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.entropy import entropy_of
from egad_jax.losses.in_batch import in_batch_inputs, in_batch_metrics
from egad_jax.losses.log_divergences import LogDivergence, make_divergence
from egad_jax.losses.probabilities import promote
from egad_jax.losses.reductions import masked_mean
from egad_jax.losses.routing import top_tokens
from egad_jax.losses.temperature import check_temperature
from egad_jax.losses.terms import LogPair, at_temperature, check_ce_weight, log_pair, token_terms
from egad_jax.losses.top_k import Teacher, check_dense
from egad_jax.types import Stats


def se_kd_loss(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  labels: ArrayLike,
  mask: ArrayLike,
  *,
  fraction: float = 0.2,
  divergence: str | LogDivergence = "forward_kl",
  divergence_options: Mapping[str, Any] | None = None,
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  where: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """SE-KD (arXiv 2602.01395) as published: mean of T^2 D over the top tokens of each sequence.

  Args:
    student_logits: float, shape [..., seq, vocab].
    teacher_logits: float, same shape, or a `TopK` of them. Detached.
    labels: int, shape [..., seq], already aligned: the token that the logits at its index predict.
    mask: bool, shape [..., seq], true at tokens that count; logits may be NaN elsewhere.
    fraction: share of each sequence to keep, in (0, 1]: of its n masked tokens, the
      ceil(fraction n) of highest student entropy (the earlier one at ties).
    divergence: a key of `DIVERGENCES`, or a function, see `make_divergence`.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    temperature: T of the divergence, > 0; the entropies are at T = 1.
    ce_weight: factor, >= 0, on the cross-entropy with the labels, a mean over all tokens in the
      mask; 0 leaves it out of the loss.
    where: bool [vocab], true at real vocabulary entries; None counts all.

  Returns:
    The loss, a scalar (0 when nothing is masked in), and the metrics of `in_batch_metrics`.

  Raises:
    TypeError: wrong dtype.
    ValueError: shapes that do not match, names or ranges.

  >>> student = jnp.array([[1.0, 1.0, 1.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
  >>> teacher = jnp.array([[2.0, 1.0, 0.0, -1.0], [0.0, 9.0, 0.0, 0.0]])
  >>> loss, metrics = se_kd_loss(
  ...   student, teacher, jnp.array([0, 0]), jnp.array([True, True]), fraction=0.5)
  >>> round(float(loss), 4), float(metrics["hard_fraction"])
  (0.2988, 0.5)
  """
  check_ce_weight(ce_weight)
  check_temperature("temperature", temperature)
  *logits, labels, mask = in_batch_inputs(student_logits, teacher_logits, labels, mask, where)
  pair = log_pair(*logits)
  kept = top_tokens(student_entropy_of(pair), mask, fraction=fraction)
  # With these weights, the mean over all tokens is the mean over the kept tokens.
  weight = kept * jnp.sum(mask) / jnp.maximum(jnp.sum(kept), 1)
  loss, stats = weighted_terms(
    pair,
    labels,
    weight.astype(pair.log_q.dtype),
    hard=kept,
    divergence=make_divergence(divergence, divergence_options),
    temperature=temperature,
    ce_weight=ce_weight,
  )
  return masked_mean(loss, mask), in_batch_metrics(stats, mask)


def ea_kd_loss(
  student_logits: ArrayLike,
  teacher_logits: ArrayLike,
  labels: ArrayLike,
  mask: ArrayLike,
  *,
  entropy_temperature: float = 3.0,
  entropy_bound: float | None = None,
  divergence: str | LogDivergence = "forward_kl",
  divergence_options: Mapping[str, Any] | None = None,
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  where: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """EA-KD (arXiv 2311.13621) on whole logits: the mean of w T^2 D + ce_weight CE.

  Args:
    student_logits: float, shape [..., vocab].
    teacher_logits: float, same shape. Detached.
    labels: int, shape [...], already aligned: the token that the logits at its index predict.
    mask: bool, shape [...], true at tokens that count; logits may be NaN elsewhere.
    entropy_temperature: temperature, > 0, at which both entropies of the weight are taken.
    entropy_bound: H_ub in nats, > 0; None for the log of the number of real vocabulary entries.
    divergence: a key of `DIVERGENCES`, or a function, see `make_divergence`.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    temperature: T of the divergence; > 0.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    where: bool [vocab], true at real vocabulary entries; None counts all.

  Returns:
    The loss, a scalar (0 when nothing is masked in), and the metrics of `in_batch_metrics`.

  Raises:
    TypeError: wrong dtype.
    ValueError: shapes that do not match, names or ranges.

  >>> student, teacher = jnp.array([[1.0, 1.0, 1.0, 0.0]]), jnp.array([[2.0, 1.0, 0.0, -1.0]])
  >>> loss, metrics = ea_kd_loss(student, teacher, jnp.array([0]), jnp.array([True]))
  >>> round(float(metrics["weight_mean"]), 4), round(float(loss), 4)
  (1.3156, 0.3931)
  """
  check_ea_kd(entropy_temperature, entropy_bound, temperature, ce_weight)
  check_dense("ea_kd_loss", teacher_logits)
  *logits, labels, mask = in_batch_inputs(student_logits, teacher_logits, labels, mask, where)
  pair = log_pair(*logits)
  entries = pair.log_q.shape[-1] if where is None else jnp.sum(jnp.asarray(where).astype(bool))
  bound = jnp.log(jnp.asarray(entries, pair.log_q.dtype))
  loss, stats = weighted_terms(
    pair,
    labels,
    pair_weights(pair, entropy_temperature, bound if entropy_bound is None else entropy_bound),
    divergence=make_divergence(divergence, divergence_options),
    temperature=temperature,
    ce_weight=ce_weight,
  )
  return masked_mean(loss, mask), in_batch_metrics(stats, mask)


def entropy_weights(
  student_entropy: ArrayLike, teacher_entropy: ArrayLike, *, bound: ArrayLike
) -> jax.Array:
  """Returns EA-KD's weights (arXiv 2311.13621), w = (H_T + H_T H_S / bound) / 2, not of mean 1.

  Args:
    student_entropy: H_S in nats, float, shape [...].
    teacher_entropy: H_T in nats, same shape.
    bound: H_ub in nats, a scalar: the largest possible entropy, log vocab in the paper's text (its
      code for CIFAR-100 has 100). 0, the bound for a single class, gives w = H_T / 2.

  Returns:
    Weights >= 0, shape [...], detached; at most log vocab.

  Raises:
    TypeError: not floating point.

  >>> entropy_weights(jnp.array([0.0, 1.0]), jnp.array([2.0, 2.0]), bound=4.0).tolist()
  [1.0, 1.25]
  """
  student = jax.lax.stop_gradient(promote("student_entropy", student_entropy))
  teacher = jax.lax.stop_gradient(promote("teacher_entropy", teacher_entropy))
  bound = jax.lax.stop_gradient(jnp.asarray(bound, student.dtype))
  share = jnp.where(bound > 0, student / jnp.where(bound > 0, bound, 1), 0)
  return 0.5 * (teacher + teacher * share)


def pair_weights(pair: LogPair, temperature: float, bound: float | jax.Array) -> jax.Array:
  log_q, log_p = at_temperature(pair, temperature)
  return entropy_weights(entropy_of(log_q), entropy_of(log_p), bound=bound)


def student_entropy_of(pair: LogPair) -> jax.Array:
  return entropy_of(jax.lax.stop_gradient(pair.vocab_log_q))


def weighted_terms(
  pair: LogPair,
  labels: jax.Array,
  weight: jax.Array,
  *,
  hard: bool | jax.Array = False,
  divergence: LogDivergence,
  temperature: float,
  ce_weight: float,
) -> tuple[jax.Array, Stats]:
  """Returns loss and stats, each [...], of w T^2 D + ce_weight CE; see `terms.token_terms`."""
  value = divergence(*at_temperature(pair, temperature)) * (temperature**2 * weight)
  return token_terms(
    pair, labels, value, ce_weight=ce_weight, temperature=temperature, weight=weight, hard=hard
  )


def check_ea_kd(
  entropy_temperature: float, entropy_bound: float | None, temperature: float, ce_weight: float
) -> None:
  check_ce_weight(ce_weight)
  check_temperature("temperature", temperature)
  check_temperature("entropy_temperature", entropy_temperature)
  if entropy_bound is not None and not entropy_bound > 0:
    raise ValueError(f"entropy_bound must be a positive entropy or None, got {entropy_bound}.")
