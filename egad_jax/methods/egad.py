"""EGAD and vanilla KD against the running entropy distribution; formulas: `losses.egad`."""

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
from egad_jax.methods.method import Context, Method, entropy_only
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
  """EGAD against the running entropy distribution; a `Method` with no other state.

  A mechanism that is off (`curriculum=None`, `temperature.kind="fixed"`, `branch=None`) is absent
  from the program.

  Args:
    divergence: a key of `DIVERGENCES`, or a function, see `make_divergence`.
    divergence_options: its hyper-parameters.
    ce_weight: of the cross-entropy with the labels; 0 leaves it out of the loss.
    curriculum: mechanism 1, or None.
    temperature: mechanism 2; a number, or kind "fixed", is plain KD.
    branch: mechanism 3, or None.
    half_life: of the distribution, in tokens; > 0.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.
  """
  temperature = check_options(ce_weight, curriculum, temperature, branch)

  def guide(entropy: jax.Array, context: Context) -> TokenGuidance:
    return running_guidance(
      entropy,
      distribution=context.state.entropy,
      progress=context.progress,
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
      *(params, student_taps, teacher_taps, stats, mask),
      distribution=context.state.entropy,
      branch=branch,
    )

  token_loss = EntropyGuidedLoss(
    guide,
    make_divergence(divergence, divergence_options),
    ce_weight=ce_weight,
    hard_logits=branch is None or branch.hard_logits,
    is_forward_kl=divergence == "forward_kl",
  )

  def init_params(key: jax.Array, **sizes: int) -> Params:
    return {} if branch is None else branch.init_params(key, **sizes)

  return Method(
    token_loss=token_loss,
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
  """T^2 D(T) + ce_weight CE for every token (Hinton et al., arXiv 1503.02531): EGAD, all off.

  Keeps the entropy distribution too, so that reports compare like with like.

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
