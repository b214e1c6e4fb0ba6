"""The guard: withholds and counts the updates of steps that are not finite, or that spike.

Its verdict is part of the train step. It depends on the train state and the batch alone, so a
resumed run repeats it bit for bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

WARM_UP = 20
"""Accepted steps before any step can be a spike: a standard deviation of fewer says little."""

STD_FLOOR = 0.05
"""Least standard deviation, relative to the mean: on a flat curve any jitter is many sigmas."""

# Deviations are taken from values clipped to this, so that their squares are finite in float32.
_LARGEST = 1e18


class Spikes(NamedTuple):
  """Defines a spike: a loss or gradient norm above mean + sigmas * std of the accepted steps.

  Attributes:
    sigmas: standard deviations above the mean; positive.
    half_life: accepted steps after which a step counts half in mean and std; positive.
  """

  sigmas: float
  half_life: float


class Verdict(NamedTuple):
  """The guard's judgement of one step.

  Attributes:
    finite: bool scalar, whether loss and gradient norm are finite.
    accepted: bool scalar, whether the update is made.
    limits: float32 [2], the largest loss and gradient norm that are no spike; None if the guard
      looks for no spikes.
  """

  finite: jax.Array
  accepted: jax.Array
  limits: jax.Array | None


class Guard(NamedTuple):
  """The guard's counts and running statistics; part of the train state.

  Mean and variance are those of (loss per token, gradient norm), weighted by 2^(-age / half_life)
  with weights that sum to 1 from the first step on. They stay 0 if the guard looks for no spikes.

  Attributes:
    skipped_in_a_row: int32 scalar, skipped steps since the last accepted one.
    skipped: int32 scalar, skipped steps since the start of the run.
    accepted: int32 scalar, accepted steps that mean and variance are taken over.
    mean: float32 [2], mean of loss per token and gradient norm.
    variance: float32 [2], their variances.
  """

  skipped_in_a_row: jax.Array
  skipped: jax.Array
  accepted: jax.Array
  mean: jax.Array
  variance: jax.Array

  @classmethod
  def init(cls) -> Guard:
    """Returns the guard before the first step."""
    return cls(*(jnp.int32(0) for _ in range(3)), *(jnp.zeros(2, jnp.float32) for _ in range(2)))

  def limits(self, spikes: Spikes) -> jax.Array:
    """The largest loss and gradient norm that are no spike, float32 [2]; inf until `WARM_UP`."""
    std = jnp.maximum(jnp.sqrt(self.variance), STD_FLOOR * jnp.abs(self.mean))
    return jnp.where(self.accepted >= WARM_UP, self.mean + spikes.sigmas * std, jnp.inf)

  def judge(self, values: jax.Array, spikes: Spikes | None) -> Verdict:
    """Judges a step by those before it.

    Args:
      values: float32 [2], the step's loss per token and gradient norm. The norm is over all leaves,
        so it is not finite if any gradient is not finite, or if their squares overflow.
      spikes: what counts as a spike; None to look for none.
    """
    finite = jnp.all(jnp.isfinite(values))
    if spikes is None:
      return Verdict(finite, finite, None)
    limits = self.limits(spikes)
    return Verdict(finite, finite & ~jnp.any(values > limits), limits)

  def update(
    self, accepted: jax.Array, values: jax.Array, tokens: jax.Array, spikes: Spikes | None
  ) -> Guard:
    """Counts a step; only an accepted one with target tokens moves mean and variance.

    Args:
      accepted: bool scalar, `Verdict.accepted` of the step.
      values: float32 [2], the values that `judge` was given.
      tokens: scalar, number of the step's target tokens.
      spikes: the spikes that `judge` was given.

    >>> guard, values = Guard.init(), jnp.array([2.0, 0.5])
    >>> guard = guard.update(jnp.bool_(True), values, 9, Spikes(6.0, 100.0))
    >>> guard = guard.update(jnp.bool_(False), 10 * values, 9, Spikes(6.0, 100.0))
    >>> int(guard.skipped_in_a_row), int(guard.skipped), int(guard.accepted), guard.mean.tolist()
    (1, 1, 1, [2.0, 0.5])
    """
    counted = self._replace(
      skipped_in_a_row=jnp.where(accepted, 0, self.skipped_in_a_row + 1),
      skipped=self.skipped + ~accepted,
    )
    if spikes is None:
      return counted
    # The weight of the newest of n steps. expm1, because 1 - exp rounds to 0 for a long half-life.
    rate = -math.log(2.0) / spikes.half_life
    weight = jnp.expm1(rate) / jnp.expm1(rate * (self.accepted + 1))
    off = jnp.clip(values, -_LARGEST, _LARGEST) - self.mean
    moved = counted._replace(
      accepted=self.accepted + 1,
      mean=self.mean + weight * off,
      variance=(1 - weight) * (self.variance + weight * off**2),
    )
    moves = accepted & (tokens > 0)
    return jax.tree.map(lambda new, old: jnp.where(moves, new, old), moved, counted)
