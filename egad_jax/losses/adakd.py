"""AdaKD (arXiv 2510.11615): token-adaptive distillation, in-batch form.

`make_adakd` is the form for training, with running distributions. The difficulty s of a token is
the Hellinger distance between teacher and student at T = 1, detached. Hard tokens are selected
(`focus`), and an easier token gets a higher temperature: T = base exp(-strength tanh(log(s /
median))). The loss, with the selected share r of the n target tokens, is

  sum_selected T^2 D(T) / n_selected + ce_weight sum CE / n
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.entropy import entropy_position, median_ratio
from egad_jax.losses.focus import Focus, FocusState, select_hardest, update_focus
from egad_jax.losses.guidance import TokenGuidance, temperature_and_factor
from egad_jax.losses.in_batch import in_batch_inputs, in_batch_metrics
from egad_jax.losses.log_divergences import LogDivergence, hellinger, make_divergence
from egad_jax.losses.probabilities import check_type
from egad_jax.losses.reductions import masked_mean, masked_median, masked_sum
from egad_jax.losses.temperature import Temperature, as_temperature, check_no_gradient
from egad_jax.losses.terms import at_temperature, check_ce_weight, log_pair, token_terms
from egad_jax.losses.top_k import Teacher
from egad_jax.types import Stats


def adakd_loss(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  labels: ArrayLike,
  mask: ArrayLike,
  *,
  state: FocusState,
  elapsed: ArrayLike,
  divergence: str | LogDivergence = "reverse_kl",
  divergence_options: Mapping[str, Any] | None = None,
  ce_weight: float = 0.0,
  temperature: Temperature | float = Temperature(position="median_ratio"),  # noqa: B008
  focus: Focus = Focus(),  # noqa: B008
  where: ArrayLike | None = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], FocusState]]:
  """AdaKD on whole logits, with the tokens of the batch ranked and selected exactly.

  Args:
    student_logits: float, shape [..., vocab]; leading axes are usually [batch, seq].
    teacher_logits: float, same shape, or a `TopK` of them. Detached.
    labels: int, shape [...], already aligned: the token that the logits at its index predict.
    mask: bool, shape [...], true at tokens that count; logits may be NaN elsewhere.
    state: state of the controller: `FocusState.init()` at first, then the state that the last call
      returned.
    elapsed: how far along the training the next call's step is, a scalar in [0, 1].
    divergence: a key of `DIVERGENCES`, or a function, see `make_divergence`.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    ce_weight: factor, >= 0, on the mean over all tokens of the cross-entropy with the labels; 0
      leaves it out of the loss.
    temperature: how the temperature follows the difficulty; position "cdf" is the rank in the
      batch, kind "mean" and compensation "mean_norm" use the mean over the masked tokens.
    focus: which tokens are selected; `Focus(ratio_step=0.0)` selects all of them.
    where: optional bool [vocab], true at real vocabulary entries.

  Returns:
    The loss, a scalar (0 when nothing is masked in); and a pair of the metrics and the controller's
    next state. The metrics are those of `in_batch_metrics` (hard_fraction is the share of selected
    tokens), difficulty (the mean) and focus_ratio, the r of this call. The state is unchanged when
    nothing is masked in.

  Raises:
    TypeError: wrong dtype.
    ValueError: shapes that do not match, names or ranges.

  >>> student = jnp.array([[1.0, 1.0, 1.0, 0.0]])
  >>> teacher = jnp.array([[2.0, 1.0, 0.0, -1.0]])
  >>> labels, mask = jnp.array([0]), jnp.array([True])
  >>> loss, (metrics, state) = adakd_loss(
  ...   student, teacher, labels, mask, state=FocusState.init(), elapsed=0.0
  ... )
  >>> round(float(loss), 4), round(float(metrics["difficulty"]), 4)
  (0.3351, 0.2784)
  """
  check_ce_weight(ce_weight)
  check_type("state", state, FocusState)
  temperature = as_temperature(temperature)
  check_no_gradient(temperature, "adakd")
  student_logits, teacher_logits, labels, mask = in_batch_inputs(
    student_logits, teacher_logits, labels, mask, where
  )
  guide = functools.partial(
    _guide_in_batch, mask=mask, ratio=state.ratio, temperature=temperature, focus=focus
  )
  loss, stats = adakd_terms(
    student_logits,
    teacher_logits,
    labels,
    guide,
    divergence=make_divergence(divergence, divergence_options),
    ce_weight=ce_weight,
  )
  metrics = in_batch_metrics(stats, mask) | {
    "difficulty": masked_mean(stats["difficulty"], mask),
    "focus_ratio": state.ratio.astype(loss.dtype),
  }
  return masked_mean(loss, mask), (metrics, control_focus(state, stats, mask, elapsed, focus))


def adakd_terms(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  guide: Callable[[jax.Array], TokenGuidance],
  *,
  divergence: LogDivergence,
  ce_weight: float,
  teacher_entropy: jax.Array | None = None,
) -> tuple[jax.Array, Stats]:
  """Returns loss and stats of each token, [...]; the method's only pass over the vocabulary.

  `guide` maps the difficulty [...] to the guidance of the tokens; `teacher_entropy` is as for
  `log_pair`.
  """
  pair = log_pair(student_logits, teacher_logits, teacher_entropy=teacher_entropy)
  # The gradient treats the difficulty as a constant, as in the paper.
  difficulty = hellinger(jax.lax.stop_gradient(pair.log_q), pair.log_p)
  guidance = guide(difficulty)
  value = divergence(*at_temperature(pair, guidance.temperature)) * guidance.factor
  if guidance.weight is not None:
    value = value * guidance.weight
  return token_terms(
    pair,
    labels,
    value,
    ce_weight=ce_weight,
    temperature=guidance.temperature,
    weight=1.0 if guidance.weight is None else guidance.weight,
    hard=True if guidance.hard is None else guidance.hard,
    difficulty=difficulty,
  )


def _guide_in_batch(
  difficulty: jax.Array,
  *,
  mask: jax.Array,
  ratio: jax.Array,
  temperature: Temperature,
  focus: Focus,
) -> TokenGuidance:
  """Selects tokens and sets their temperatures by comparison with the batch's masked tokens."""
  weight = hard = None
  if focus.ratio_step:
    hard = select_hardest(difficulty, mask, ratio)
    selected = jnp.maximum(jnp.sum(hard), 1).astype(difficulty.dtype)
    weight = jnp.where(hard, jnp.sum(mask) / selected, 0)

  def adaptive() -> jax.Array:
    if temperature.position == "cdf":
      return temperature.of_position(entropy_position(difficulty, mask))
    lower = focus.median == "selected"
    median = masked_median(difficulty, hard if lower and hard is not None else mask, lower=lower)
    return temperature.of_position(median_ratio(difficulty, median))

  def mean(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return masked_mean(function(adaptive()), mask)

  tokens_temperature, factor = temperature_and_factor(temperature, adaptive, mean)
  return TokenGuidance(tokens_temperature, factor, weight, hard)


def control_focus(
  state: FocusState, stats: Stats, mask: jax.Array, elapsed: ArrayLike, focus: Focus
) -> FocusState:
  """Returns the controller's state after a step, from the selected tokens' mean of T^2 D(T).

  That is the loss that the official code reads. The mean is weighted, so that a token kept in part
  counts in part. A step that selected no token, or whose loss is not finite, changes nothing.
  """
  weight = masked_sum(stats["weight"], mask)
  loss = masked_sum(stats["distillation_loss"], mask) / jnp.where(weight > 0, weight, 1)
  updated = update_focus(state, loss, elapsed=elapsed, focus=focus)
  counts = (weight > 0) & jnp.isfinite(loss)
  return jax.tree.map(lambda new, old: jnp.where(counts, new, old), updated, state)
