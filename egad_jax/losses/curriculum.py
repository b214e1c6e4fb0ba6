"""Mechanism 1 of EGAD: loss weights that move from low- to high-entropy tokens.

The abstract of EGAD (arXiv 2605.01732) describes a token-level curriculum whose focus moves from
low- to high-entropy tokens and gives no formula; the forms here are ours, after SE-KD3x ("linear",
"window") and competence-based curricula ("competence").
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import check_mask, check_progress, promote
from egad_jax.losses.reductions import masked_mean


@dataclasses.dataclass(frozen=True)
class Curriculum:
  """The shape of the curriculum; its progress is an argument of each step.

  Attributes:
    kind: "linear", "window", "competence" or "exponential"; see `curriculum_weights`.
    width: share of the positions that "window" keeps, in (0, 1].
    competence: share of the positions that "competence" starts with, in (0, 1].
    strength: strength of "exponential", >= 0; the weights of two tokens have a ratio of at most
      exp(strength), and 0 makes all weights 1.
  """

  kind: str = "linear"
  width: float = 0.5
  competence: float = 0.1
  strength: float = 2.0

  def __post_init__(self) -> None:
    if self.kind not in CURRICULUM_KINDS:
      raise ValueError(f"kind must be one of {', '.join(CURRICULUM_KINDS)}, got {self.kind!r}.")
    for name in ("width", "competence"):
      if not 0 < getattr(self, name) <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}.")
    if not (math.isfinite(self.strength) and self.strength >= 0):
      raise ValueError(f"strength must be >= 0 and finite, got {self.strength}.")


def curriculum_weights(
  position: ArrayLike,
  progress: ArrayLike,
  *,
  kind: str = "linear",
  width: float = 0.5,
  competence: float = 0.1,
  strength: float = 2.0,
  mask: ArrayLike | None = None,
  normalize: bool = False,
) -> jax.Array:
  """Returns the weights of tokens at entropy positions h, at curriculum progress phi.

  Every kind is divided by its integral over h in [0, 1], so weights have mean 1 in expectation when
  h is uniform:

  - linear: 2 ((1 - phi)(1 - h) + phi h); all ones at phi = 1/2.
  - window: 1/width on [phi (1 - width), phi (1 - width) + width], else 0.
  - competence: 1/c on [0, c], c = sqrt(phi (1 - c0^2) + c0^2), c0 = competence; easy tokens stay.
  - exponential: a exp(a h) / (exp(a) - 1), a = strength (2 phi - 1); all ones at phi = 1/2.

  Args:
    position: h, the position of each token's entropy in a distribution, float in [0, 1], shape
      [...].
    progress: phi, a scalar in [0, 1]; a traced value is clipped to that range.
    kind: one of the above.
    width: share of the positions in the window, in (0, 1].
    competence: c0, the share of the positions that "competence" starts with, in (0, 1].
    strength: strength of the exponential, >= 0; 0 makes all weights 1.
    mask: bool, shape [...]; weights are 0 where it is false. None counts all tokens.
    normalize: whether to divide by the mean over the masked tokens, as the in-batch forms do: the
      mean is then exactly 1, but each weight depends on the other tokens.

  Returns:
    Weights >= 0, shape [...], detached. Normalized weights that are all zero become ones.

  Raises:
    TypeError: `position` is not floating point.
    ValueError: unknown `kind`, a hyper-parameter out of range, or `mask` of another shape.

  >>> h = jnp.array([0.0, 0.25, 0.5, 1.0])
  >>> [round(float(w), 6) for w in curriculum_weights(h, 0.25, normalize=True)]
  [1.411765, 1.176471, 0.941176, 0.470588]
  >>> curriculum_weights(h, 0.5).tolist()
  [1.0, 1.0, 1.0, 1.0]
  """
  shape = Curriculum(kind=kind, width=width, competence=competence, strength=strength)
  position = jax.lax.stop_gradient(promote("position", position))
  progress = check_progress("progress", progress).astype(position.dtype)
  weights = CURRICULUM_KINDS[kind](position, progress, shape)
  if mask is None:
    mask = jnp.ones(weights.shape, bool)
  mask = check_mask(mask, weights.shape)
  if normalize:
    mean = masked_mean(weights, mask)
    weights = jnp.where(mean > 0, weights / jnp.where(mean > 0, mean, 1), 1)
  return jnp.where(mask, weights, 0)


def _linear(position: jax.Array, progress: jax.Array, shape: Curriculum) -> jax.Array:
  del shape
  return 2 * ((1 - progress) * (1 - position) + progress * position)


def _window(position: jax.Array, progress: jax.Array, shape: Curriculum) -> jax.Array:
  start = progress * (1 - shape.width)
  inside = (position >= start) & (position <= start + shape.width)
  return jnp.where(inside, 1 / shape.width, 0).astype(position.dtype)


def _competence(position: jax.Array, progress: jax.Array, shape: Curriculum) -> jax.Array:
  squared = shape.competence**2
  competence = jnp.sqrt(progress * (1 - squared) + squared)
  return jnp.where(position <= competence, 1 / competence, 0)


def _exponential(position: jax.Array, progress: jax.Array, shape: Curriculum) -> jax.Array:
  tilt = shape.strength * (2 * progress - 1)
  # |a| / (1 - exp(-|a|)) is 0 / 0 at a = 0, where its limit is 1. The exponent is measured from the
  # end with the largest weight, so that no strength overflows.
  flat, steep = tilt == 0, jnp.abs(tilt)
  largest = jnp.where(flat, 1, steep / jnp.where(flat, 1, -jnp.expm1(-steep)))
  return largest * jnp.exp(tilt * position - jnp.maximum(tilt, 0))


CURRICULUM_KINDS = {
  "linear": _linear,
  "window": _window,
  "competence": _competence,
  "exponential": _exponential,
}
