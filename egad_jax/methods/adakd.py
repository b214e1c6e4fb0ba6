"""AdaKD with the running distribution of difficulty; the formulas are in `losses.adakd`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from egad_jax.losses.adakd import adakd_terms, control_focus
from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.entropy import median_ratio
from egad_jax.losses.focus import Focus, FocusState
from egad_jax.losses.guidance import TokenGuidance, temperature_and_factor
from egad_jax.losses.log_divergences import LogDivergence, make_divergence
from egad_jax.losses.temperature import Temperature, as_temperature, check_no_gradient
from egad_jax.losses.terms import check_ce_weight
from egad_jax.methods.method import Context, Method, State, TokenLoss, check_half_life
from egad_jax.types import Stats


class AdaKDState(NamedTuple):
  """What AdaKD remembers between steps, besides the running distribution of teacher entropy.

  Attributes:
    difficulty: the running distribution of the difficulty s, which is in [0, 1].
    focus: the state of the controller that sets the selected share r.
  """

  difficulty: EntropyDistribution
  focus: FocusState


def make_adakd(
  *,
  divergence: str | LogDivergence = "reverse_kl",
  divergence_options: Mapping[str, Any] | None = None,
  ce_weight: float = 0.0,
  temperature: Temperature | float = Temperature(position="median_ratio"),  # noqa: B008 (frozen)
  focus: Focus = Focus(),  # noqa: B008
  half_life: float = 1e6,
) -> Method:
  """Makes AdaKD (arXiv 2510.11615) with the running distribution of difficulty; a `Method`.

  The method selects the top share r of the distribution (`EntropyDistribution.top_share`) and gives
  a selected token the weight 1 / r: the sum is divided by the expected number of selected tokens,
  not by the number in the batch. The controller reads the mean over the global batch once per step,
  so accumulation and sharding are exact. All of this is ours; the paper ranks each batch, which
  `adakd_loss` does.

  Args:
    divergence: a key of `DIVERGENCES` or a function, see `make_divergence`; the paper's scripts use
      reverse KL.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    ce_weight: factor, >= 0, on the cross-entropy with the labels, which is over all tokens; 0
      leaves it out of the loss.
    temperature: as for EGAD, with the difficulty instead of the entropy: "confident_hot" raises the
      temperature of easy tokens. Kind "mean" and compensation "mean_norm" average over all tokens.
    focus: which tokens are selected; `Focus(ratio_step=0.0)` selects all of them.
    half_life: tokens after which a token counts half in either running distribution; > 0.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.

  >>> float(make_adakd().init_state().method.focus.ratio)
  1.0
  """
  check_ce_weight(ce_weight)
  temperature = as_temperature(temperature)
  check_no_gradient(temperature, "adakd")
  check_half_life(half_life)
  log_divergence = make_divergence(divergence, divergence_options)

  def token_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    extras: Mapping[str, jax.Array],
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    guide = functools.partial(
      _guide_running,
      own=context.state.method,
      elapsed=context.elapsed,
      temperature=temperature,
      focus=focus,
    )
    return adakd_terms(
      student_logits,
      teacher_logits,
      labels,
      guide,
      divergence=log_divergence,
      ce_weight=ce_weight,
      teacher_entropy=extras.get("teacher_entropy"),
    )

  def observe(state: State, stats: Stats, mask: jax.Array) -> State:
    entropy = state.entropy.update(stats["teacher_entropy"], mask, half_life=half_life)
    difficulty = state.method.difficulty.update(stats["difficulty"], mask, half_life=half_life)
    return State(entropy, state.method._replace(difficulty=difficulty))

  def update(state: State, stats: Stats, mask: jax.Array, elapsed: jax.Array) -> State:
    controlled = control_focus(state.method.focus, stats, mask, elapsed, focus)
    state = observe(state, stats, mask)
    return state._replace(method=state.method._replace(focus=controlled))

  empty = EntropyDistribution.init
  return Method(
    loss=TokenLoss(token_loss),
    init_state=lambda: State(empty(), AdaKDState(empty(), FocusState.init())),
    observe=observe,
    update=update,
    metrics=lambda state: {"focus_ratio": state.method.focus.ratio},
  )


def _guide_running(
  difficulty: jax.Array,
  *,
  own: AdaKDState,
  elapsed: jax.Array,
  temperature: Temperature,
  focus: Focus,
) -> TokenGuidance:
  """Selects tokens and sets their temperatures from the running distribution of difficulty."""
  distribution, ratio = own.difficulty, jax.lax.stop_gradient(own.focus.ratio)
  weight = hard = None
  if focus.ratio_step:
    hard = distribution.top_share(difficulty, ratio)
    weight = hard / ratio

  def adaptive(difficulty: jax.Array) -> jax.Array:
    if temperature.position == "median_ratio" and focus.median == "selected" and focus.ratio_step:
      position = median_ratio(difficulty, distribution.quantile(1 - ratio / 2))
    else:
      position = distribution.position(difficulty, temperature.position)
    return temperature.of_position(position, elapsed)

  tokens_temperature, factor = temperature_and_factor(
    temperature,
    functools.partial(adaptive, difficulty),
    lambda f: distribution.expectation(lambda bins: f(adaptive(bins))),
  )
  return TokenGuidance(tokens_temperature, factor, weight, hard)
