"""Mechanism 2 of EGAD: a temperature for each token from its teacher entropy.

The abstract of EGAD (arXiv 2605.01732) does not give the direction. `confident_hot` raises the
temperature of tokens of which the teacher is sure, as AdaKD (arXiv 2510.11615) does;
`uncertain_hot` is the opposite reading. Neither can be called the paper's. Kept up to the end,
neither has beaten a fixed temperature of 1 on a real teacher here; `uncertain_hot` with `anneal`
has, by little: see docs/results.md.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import check_progress, check_type, promote

DIRECTIONS = {"confident_hot": -1.0, "uncertain_hot": 1.0}
# They read the student's gradient as well as the temperature; see `gradient_norm`.
GRADIENT_COMPENSATIONS = ("gradient_norm", "gradient_norm_only")
_POWERS = ("per_token", "linear", "none", "mean_norm")
COMPENSATIONS = (*_POWERS, *GRADIENT_COMPENSATIONS)
TEMPERATURE_KINDS = ("adaptive", "mean", "fixed")
POSITIONS = ("cdf", "median_ratio")


@dataclasses.dataclass(frozen=True)
class Temperature:
  """How a token's temperature follows its entropy, and how the loss compensates for it.

  Attributes:
    kind: "adaptive", one temperature per token; "fixed", `base` for all tokens; "mean", the control
      that gives all tokens the expectation of the adaptive temperature.
    base: T0, the temperature at position 1/2; > 0.
    strength: c >= 0; unclipped temperatures lie in [T0 exp(-c), T0 exp(c)]. 0 gives all tokens T0.
    direction: "confident_hot" (low entropy, high temperature) or "uncertain_hot" (the opposite).
    position: kind of position in x = 2 position - 1: "cdf" (rank-like) or "median_ratio"
      (x = tanh(log(H / median))).
    minimum: lower limit of the temperature, > 0.
    maximum: upper limit of the temperature, >= minimum.
    compensation: kind of factor on the divergence; see `compensation_factor` for those that are a
      function of T, and `norm_compensated` for "gradient_norm" and "gradient_norm_only".
    anneal: share of the run, in [0, 1], after which all adaptive temperatures are 1, which they
      approach as T^(1 - elapsed / anneal); 0: they never change. Not for kind "fixed".
  """

  kind: str = "adaptive"
  base: float = 1.0
  strength: float = 0.5
  direction: str = "confident_hot"
  position: str = "cdf"
  minimum: float = 0.1
  maximum: float = 10.0
  compensation: str = "per_token"
  anneal: float = 0.0

  def __post_init__(self) -> None:
    choices = {
      "kind": TEMPERATURE_KINDS,
      "direction": tuple(DIRECTIONS),
      "position": POSITIONS,
      "compensation": COMPENSATIONS,
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}."
        )
    check_temperature("base", self.base)
    if not (math.isfinite(self.strength) and self.strength >= 0):
      raise ValueError(
        f"strength must be >= 0 and finite, got {self.strength}; direction gives the sign."
      )
    if not 0 < self.minimum <= self.maximum:
      raise ValueError(
        f"0 < minimum <= maximum must hold, got minimum {self.minimum}, maximum {self.maximum}."
      )
    if self.kind != "fixed" and not self.minimum <= self.base <= self.maximum:
      raise ValueError(
        f"base must lie between minimum {self.minimum} and maximum {self.maximum}, which clip it,"
        f" got {self.base}."
      )
    if not 0 <= self.anneal <= 1:
      raise ValueError(f"anneal must be a share of the run in [0, 1], got {self.anneal}.")
    if self.anneal and self.kind == "fixed":
      raise ValueError(
        f'anneal ({self.anneal}) fades adaptive temperatures out and must be 0 with kind "fixed".'
      )

  @property
  def reads_gradient(self) -> bool:
    """Whether the compensation is no function of the temperature alone."""
    return self.compensation in GRADIENT_COMPENSATIONS

  def of_position(self, position: jax.Array, elapsed: ArrayLike | None = None) -> jax.Array:
    """Returns the adaptive temperature at `position` [...], same shape.

    Args:
      position: position of each token, float in [0, 1].
      elapsed: how far along the training the step is, a scalar in [0, 1]; None will do without
        annealing.

    Raises:
      ValueError: `anneal` is set and `elapsed` is None.
    """
    temperature = self._at_first(position)
    if not self.anneal:
      return temperature
    if elapsed is None:
      raise ValueError(
        f"anneal ({self.anneal}) needs elapsed, the share of the training that is over, in [0, 1]."
      )
    remaining = jnp.maximum(0, 1 - check_progress("elapsed", elapsed) / self.anneal)
    return temperature**remaining

  def _at_first(self, position: jax.Array) -> jax.Array:
    return adaptive_temperature(
      position,
      base=self.base,
      strength=self.strength,
      direction=self.direction,
      minimum=self.minimum,
      maximum=self.maximum,
    )


def adaptive_temperature(
  position: ArrayLike,
  *,
  base: float = 1.0,
  strength: float = 0.5,
  direction: str = "confident_hot",
  minimum: float = 0.1,
  maximum: float = 10.0,
) -> jax.Array:
  """T = clip(base exp(sign strength x), minimum, maximum), x = 2 position - 1.

  Args:
    position: position of each token's teacher entropy, float in [0, 1], shape [...].
    base: T0, the temperature at position 1/2; > 0.
    strength: c >= 0; 0 gives all tokens T0.
    direction: "confident_hot" (sign -1) or "uncertain_hot" (sign +1).
    minimum: lower limit of the temperature, > 0.
    maximum: upper limit of the temperature, >= minimum.

  Returns:
    Temperatures, at least float32, shape [...], detached.

  Raises:
    TypeError: `position` is not floating point.
    ValueError: a hyper-parameter is out of range or `direction` is unknown.

  >>> [round(float(t), 6) for t in adaptive_temperature(jnp.array([0.2, 0.5, 0.8]))]
  [1.349859, 1.0, 0.740818]
  """
  Temperature(base=base, strength=strength, direction=direction, minimum=minimum, maximum=maximum)
  position = jax.lax.stop_gradient(promote("position", position))
  exponent = DIRECTIONS[direction] * strength * (2 * position - 1)
  return jnp.clip(base * jnp.exp(exponent), minimum, maximum)


def compensation_factor(
  temperature: ArrayLike, *, kind: str = "per_token", mean_square: ArrayLike | None = None
) -> jax.Array:
  """Returns the factor that compensates for the 1/T^2 scale of a divergence at temperature T.

  - per_token: T^2; the gradient of forward KL becomes T (q_T - p_T), as in Hinton's KD.
  - linear: T; the gradient becomes q_T - p_T.
  - none: 1; the gradient becomes (q_T - p_T) / T.
  - mean_norm: T^2 / E[T^2]: per_token with one more factor, common to all tokens. Under an
    optimizer that divides by the gradient's scale, such as Adam, a common factor matters only
    through gradient clipping and relative to other terms of the loss.

  None of them leaves the relative weights of tokens unchanged: the norm of q_T - p_T depends on T
  differently for each token, so no power of T is right for all. A fixed T above 1 shifts weight
  towards tokens of which the teacher is sure, whatever the compensation.

  Args:
    temperature: T > 0, shape [...] or a scalar.
    kind: one of the above.
    mean_square: E[T^2], a scalar; needed for "mean_norm", not read otherwise.

  Returns:
    Factors, shape of `temperature`, detached.

  Raises:
    ValueError: unknown `kind`, or "mean_norm" without `mean_square`.

  >>> float(compensation_factor(2.0)), float(compensation_factor(2.0, kind="linear"))
  (4.0, 2.0)
  """
  temperature = jax.lax.stop_gradient(promote("temperature", temperature))
  if kind == "per_token":
    return temperature**2
  if kind == "linear":
    return temperature
  if kind == "none":
    return jnp.ones_like(temperature)
  if kind == "mean_norm":
    if mean_square is None:
      raise ValueError("compensation mean_norm needs mean_square, the mean of temperature^2.")
    return temperature**2 / jax.lax.stop_gradient(jnp.asarray(mean_square))
  raise ValueError(f"kind must be one of {', '.join(_POWERS)}, got {kind!r}.")


def check_temperature(name: str, temperature: float) -> None:
  """Raises ValueError unless `temperature` is positive and finite."""
  if not (math.isfinite(temperature) and temperature > 0):
    raise ValueError(f"{name} must be a positive temperature, got {temperature}.")


def check_no_gradient(temperature: Temperature, method: str) -> None:
  """Raises ValueError if the compensation reads the gradient, which `method` does not give it."""
  if temperature.reads_gradient:
    raise ValueError(
      f"compensation {temperature.compensation!r} is egad's alone; for {method} it must be one of "
      f"{', '.join(_POWERS)}."
    )


def as_temperature(temperature: Temperature | float) -> Temperature:
  """Returns a `Temperature`; a number becomes a fixed one. TypeError for anything else."""
  if isinstance(temperature, int | float):
    return Temperature(kind="fixed", base=temperature)
  check_type("temperature", temperature, Temperature)
  return temperature
