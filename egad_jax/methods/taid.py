"""TAID as a method whose state is the interpolation schedule; see `losses.taid` for formulas."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.taid import (
  Interpolation,
  InterpolationState,
  control_interpolation,
  taid_terms,
)
from egad_jax.losses.temperature import check_temperature
from egad_jax.losses.terms import check_ce_weight
from egad_jax.methods.method import Context, Method, State, TokenLoss, entropy_only
from egad_jax.types import Stats


def make_taid(
  *,
  ce_weight: float = 0.0,
  temperature: float = 1.0,
  interpolation: Interpolation = Interpolation(),  # noqa: B008 (frozen)
  half_life: float = 1e6,
) -> Method:
  """Makes TAID (arXiv 2501.16937): T^2 KL(u || q) at T + ce_weight CE, u the interpolated target.

  The result is a `Method` whose own state is an `InterpolationState`. The schedule reads the mean
  loss over the global batch once per step, so accumulation and sharding are exact. The method keeps
  the entropy distribution too, so that reports compare like with like.

  Args:
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    temperature: T of target and student, > 0; the paper uses 1.
    interpolation: how the teacher's share t of the target rises over the training.
    half_life: tokens after which a token counts half in the entropy distribution, which only
      reports read here; > 0.

  Raises:
    ValueError: an argument is out of range.

  >>> round(float(make_taid().init_state().method.share), 4)
  0.4
  """
  check_ce_weight(ce_weight)
  check_temperature("temperature", temperature)
  entropy = entropy_only(half_life)

  def token_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    extras: Mapping[str, jax.Array],
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    return taid_terms(
      student_logits,
      teacher_logits,
      labels,
      context.state.method.share,
      temperature=temperature,
      ce_weight=ce_weight,
      teacher_entropy=extras.get("teacher_entropy"),
    )

  def update(state: State, stats: Stats, mask: jax.Array, elapsed: jax.Array) -> State:
    own = control_interpolation(state.method, stats, mask, elapsed, interpolation)
    return entropy["observe"](state, stats, mask)._replace(method=own)

  return Method(
    loss=TokenLoss(token_loss),
    init_state=lambda: State(EntropyDistribution.init(), InterpolationState.init(interpolation)),
    observe=entropy["observe"],
    update=update,
    metrics=lambda state: {"interpolation": state.method.share},
  )
