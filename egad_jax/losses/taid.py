"""TAID: distillation towards a target between student and teacher.

Temporally adaptive interpolated distillation is from arXiv 2501.16937. The target is
u = softmax((1 - t) z_student + t z_teacher), detached, and the loss KL(u || q), with the gradient
q - u. The teacher's share t rises over the training, faster while the loss falls.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.in_batch import in_batch_inputs, in_batch_metrics
from egad_jax.losses.log_divergences import check_share, forward_kl
from egad_jax.losses.probabilities import LOG_ZERO, check_progress, check_type
from egad_jax.losses.reductions import masked_mean
from egad_jax.losses.temperature import check_temperature
from egad_jax.losses.terms import LogPair, at_temperature, check_ce_weight, log_pair, token_terms
from egad_jax.losses.top_k import Teacher
from egad_jax.types import Stats

SMALLEST_LOSS = 1e-6
"""Least previous loss, in nats, by which the change of the loss is divided."""


@dataclasses.dataclass(frozen=True)
class Interpolation:
  """How the teacher's share t of the target rises. The defaults are those of the official code.

  Attributes:
    start: t at the first step, in [0, 1]; with 0 the target is the student itself, without loss or
      gradient.
    end: upper bound of t, in [start, 1]; t = 1 is forward KL to the teacher.
    rate: size of the adaptive rise per step, in [0, 1]; 0 leaves the linear schedule alone.
    momentum: decay per step of the running mean of the loss's relative decrease, in [0, 1).
  """

  start: float = 0.4
  end: float = 1.0
  rate: float = 5e-4
  momentum: float = 0.99

  def __post_init__(self) -> None:
    if not 0 <= self.start <= self.end <= 1:
      raise ValueError(f"0 <= start <= end <= 1 must hold, got start {self.start}, end {self.end}.")
    check_share("rate", self.rate)
    if not 0 <= self.momentum < 1:
      raise ValueError(f"momentum must be in [0, 1), got {self.momentum}.")


class InterpolationState(NamedTuple):
  """The schedule's memory; a pytree of float32 scalars.

  Attributes:
    share: t, the teacher's share of the next step's target.
    momentum: m, the running mean of the loss's relative decrease; 0 before the first loss.
    previous_loss: distillation loss of the last step, in nats; infinite before the first loss.
  """

  share: jax.Array
  momentum: jax.Array
  previous_loss: jax.Array

  @classmethod
  def init(cls, interpolation: Interpolation = Interpolation()) -> InterpolationState:
    """Returns the state before the first step: t at its start, no loss seen."""
    return cls(jnp.float32(interpolation.start), jnp.float32(0), jnp.float32(jnp.inf))


def update_interpolation(
  state: InterpolationState, loss: ArrayLike, *, elapsed: ArrayLike, interpolation: Interpolation
) -> InterpolationState:
  """Makes one step: m <- momentum m + (1 - momentum) (L_prev - L) / L_prev, then t from m.

  t <- min(end, max(start + (end - start) elapsed, t + rate sigmoid(m) (1 - t))), so t never falls.
  The first loss leaves m at 0 and moves t by the linear schedule alone.

  Args:
    state: the state before the step.
    loss: the step's mean distillation loss in nats, a scalar. Detached.
    elapsed: how far along the training the next step is, a scalar in [0, 1]. If it is 1 for the
      last step, the target of that step has the share `end`.
    interpolation: how t rises.

  Returns:
    The state after the step.

  >>> state, options = InterpolationState.init(), Interpolation(rate=0.1)
  >>> for loss in (1.0, 0.9, 0.8):
  ...   state = update_interpolation(state, loss, elapsed=0.0, interpolation=options)
  >>> round(float(state.share), 4), round(float(state.momentum), 4)
  (0.4585, 0.0021)
  """
  loss = jax.lax.stop_gradient(jnp.asarray(loss, jnp.float32))
  elapsed = check_progress("elapsed", elapsed)
  first = jnp.isinf(state.previous_loss)
  previous = jnp.where(first, loss, state.previous_loss)
  # The code has 1e-15, with which a first loss of 0 (start = 0) would count as a rise by 1e15.
  decrease = (previous - loss) / jnp.maximum(previous, SMALLEST_LOSS)
  momentum = interpolation.momentum * state.momentum + (1 - interpolation.momentum) * decrease
  rise = interpolation.rate * jax.nn.sigmoid(momentum) * (1 - state.share)
  linear = interpolation.start + (interpolation.end - interpolation.start) * elapsed
  share = jnp.maximum(linear, state.share + jnp.where(first, 0, rise))
  share = jnp.minimum(share, interpolation.end).astype(jnp.float32)
  return InterpolationState(share, momentum, loss)


def taid_loss(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  labels: ArrayLike,
  mask: ArrayLike,
  *,
  state: InterpolationState,
  elapsed: ArrayLike,
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  interpolation: Interpolation = Interpolation(),
  where: ArrayLike | None = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], InterpolationState]]:
  """TAID on whole logits: T^2 KL(u || q) at T + ce_weight CE, averaged over the masked tokens.

  Args:
    student_logits: float, shape [..., vocab]; leading axes are usually [batch, seq].
    teacher_logits: float, same shape, or a `TopK` of them. Detached.
    labels: int, shape [...], already aligned: the token that the logits at its index predict.
    mask: bool, shape [...], true at tokens that count; logits may be NaN elsewhere.
    state: state of the schedule: `InterpolationState.init(interpolation)` at first, then the state
      that the last call returned.
    elapsed: how far along the training the next call's step is, a scalar in [0, 1].
    temperature: T of target and student, > 0; the paper uses 1.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    interpolation: how the teacher's share t of the target rises.
    where: bool [vocab], true at real vocabulary entries; None counts all.

  Returns:
    The loss, a scalar (0 when nothing is masked in); and a pair of the metrics and the schedule's
    next state. The metrics are those of `in_batch_metrics` and interpolation, the t of this call.
    The state is unchanged when nothing is masked in.

  Raises:
    TypeError: wrong dtype.
    ValueError: shapes that do not match, or ranges.

  >>> student = jnp.array([[1.0, 1.0, 1.0, 0.0]])
  >>> teacher = jnp.array([[2.0, 1.0, 0.0, -1.0]])
  >>> labels, mask = jnp.array([0]), jnp.array([True])
  >>> loss, (metrics, state) = taid_loss(
  ...   student, teacher, labels, mask, state=InterpolationState.init(), elapsed=0.0
  ... )
  >>> round(float(loss), 4)
  0.0554
  """
  check_type("state", state, InterpolationState)
  check_ce_weight(ce_weight)
  check_temperature("temperature", temperature)
  student_logits, teacher_logits, labels, mask = in_batch_inputs(
    student_logits, teacher_logits, labels, mask, where
  )
  loss, stats = taid_terms(
    student_logits,
    teacher_logits,
    labels,
    state.share,
    temperature=temperature,
    ce_weight=ce_weight,
  )
  metrics = in_batch_metrics(stats, mask)
  metrics["interpolation"] = jax.lax.stop_gradient(state.share)
  state = control_interpolation(state, stats, mask, elapsed, interpolation)
  return masked_mean(loss, mask), (metrics, state)


def taid_terms(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  share: jax.Array,
  *,
  temperature: float,
  ce_weight: float,
  teacher_entropy: jax.Array | None = None,
) -> tuple[jax.Array, Stats]:
  """Returns loss and stats of each token, [...]; the method's only pass over the vocabulary.

  `teacher_entropy` is as for `log_pair`.
  """
  pair = log_pair(student_logits, teacher_logits, teacher_entropy=teacher_entropy)
  log_q, log_p = at_temperature(pair, float(temperature))
  value = temperature**2 * forward_kl(log_q, _log_target(pair, log_q, log_p, share))
  return token_terms(pair, labels, value, ce_weight=ce_weight, temperature=temperature)


def _log_target(pair: LogPair, log_q: jax.Array, log_p: jax.Array, share: jax.Array) -> jax.Array:
  """Returns log u, [..., vocab], detached.

  The mixture of log-probabilities differs from the mixture of logits by a constant per token.
  Log-probabilities are finite, so no share makes 0 * -inf; an entry that one model rules out counts
  as exp(-100).
  """
  share = share.astype(log_q.dtype)
  log_u = (1 - share) * log_q + share * log_p
  # Without this, entries that both models rule out would get mass if each model also rules out
  # all that the other allows.
  ruled_out = (pair.student_logits == -jnp.inf) & (pair.teacher_logits == -jnp.inf)
  log_u = jax.nn.log_softmax(jnp.where(ruled_out, -jnp.inf, log_u), axis=-1)
  return jax.lax.stop_gradient(jnp.where(ruled_out, LOG_ZERO, log_u))


def control_interpolation(
  state: InterpolationState,
  stats: Stats,
  mask: jax.Array,
  elapsed: ArrayLike,
  interpolation: Interpolation,
) -> InterpolationState:
  """Returns the schedule after a step, unchanged if no token counts or the loss is not finite."""
  loss = masked_mean(stats["distillation_loss"], mask)
  updated = update_interpolation(state, loss, elapsed=elapsed, interpolation=interpolation)
  counts = jnp.any(mask) & jnp.isfinite(loss)
  return jax.tree.map(lambda new, old: jnp.where(counts, new, old), updated, state)
