"""EGAD and vanilla KD with the running entropy distribution; formulas are in `losses.egad`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from egad_jax.losses.branch import Branch, running_feature_loss
from egad_jax.losses.curriculum import Curriculum
from egad_jax.losses.egad import check_options
from egad_jax.losses.entropy_guided import EntropyGuidedLoss
from egad_jax.losses.guidance import TokenGuidance, running_guidance
from egad_jax.losses.log_divergences import LogDivergence, make_divergence
from egad_jax.losses.temperature import Temperature
from egad_jax.methods.method import Context, Method, TokenLoss, entropy_only
from egad_jax.types import Metrics, Params, Stats


def make_egad(
  *,
  divergence: str | LogDivergence = "forward_kl",
  divergence_options: Mapping[str, Any] | None = None,
  ce_weight: float = 0.0,
  curriculum: Curriculum | None = Curriculum(),  # noqa: B008 (frozen)
  temperature: Temperature | float = Temperature(),  # noqa: B008
  branch: Branch | None = Branch(),  # noqa: B008
  half_life: float = 1e6,
) -> Method:
  """Makes EGAD with the running entropy distribution; a `Method` with no other state.

  A mechanism that is off (`curriculum=None`, `temperature.kind="fixed"`, `branch=None`) is absent
  from the compiled program.

  Args:
    divergence: a key of `DIVERGENCES`, or a function, see `make_divergence`.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    curriculum: mechanism 1, the token weights; None for a weight of 1.
    temperature: mechanism 2; a number, or kind "fixed", gives all tokens one temperature.
    branch: mechanism 3, the feature loss on hard tokens; None for no feature loss and no gate.
    half_life: tokens after which a token counts half in the running distribution; > 0.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.
  """
  temperature = check_options(ce_weight, curriculum, temperature, branch)

  def guide(entropy: jax.Array, context: Context) -> TokenGuidance:
    return running_guidance(
      entropy,
      distribution=context.state.entropy,
      progress=context.progress,
      elapsed=context.elapsed,
      curriculum=curriculum,
      temperature=temperature,
      branch=branch,
    )

  def feature_loss(
    params: Params,
    student_taps: jax.Array,
    teacher_taps: jax.Array,
    stats: Stats,
    mask: jax.Array,
    context: Context,
  ) -> tuple[jax.Array, Metrics]:
    assert branch is not None
    return running_feature_loss(
      params,
      student_taps,
      teacher_taps,
      stats,
      mask,
      distribution=context.state.entropy,
      branch=branch,
    )

  token_loss = EntropyGuidedLoss(
    guide,
    make_divergence(divergence, divergence_options),
    ce_weight=ce_weight,
    hard_logits=branch is None or branch.hard_logits,
    is_forward_kl=divergence == "forward_kl",
    compensation=temperature.compensation if temperature.reads_gradient else None,
  )

  def init_params(key: jax.Array, **sizes: int) -> Params:
    return {} if branch is None else branch.init_params(key, **sizes)

  return Method(
    loss=TokenLoss(token_loss),
    init_params=init_params,
    reads_progress=curriculum is not None,
    feature_loss=None if branch is None else feature_loss,
    **entropy_only(half_life),
  )


def make_vanilla_kd(
  *,
  divergence: str | LogDivergence = "forward_kl",
  divergence_options: Mapping[str, Any] | None = None,
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  half_life: float = 1e6,
) -> Method:
  """Makes vanilla KD (Hinton et al., arXiv 1503.02531): T^2 D(T) + ce_weight CE for every token.

  This is EGAD with all mechanisms off. It keeps the entropy distribution too, so that reports
  compare like with like.

  Args:
    divergence: a key of `DIVERGENCES`, or a function, see `make_divergence`.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    temperature: T of the divergence; > 0.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    half_life: tokens after which a token counts half in the running distribution; > 0.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.
  """
  return make_egad(
    divergence=divergence,
    divergence_options=divergence_options,
    ce_weight=ce_weight,
    curriculum=None,
    temperature=Temperature(kind="fixed", base=temperature),
    branch=None,
    half_life=half_life,
  )
