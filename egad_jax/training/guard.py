"""Which updates a run makes: steps that are not finite, or spike, are withheld and counted.

The verdict is part of the train step. It depends on the train state and the batch alone, so a
resumed run repeats it bit for bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

WARM_UP = 20
"""Accepted steps before any is a spike: a standard deviation of fewer says little."""

STD_FLOOR = 0.05
"""Least standard deviation, relative to the mean: on a flat curve any jitter is many sigmas."""

# Its square, and sums of a few of them, are finite in float32.
_LARGEST = 1e18


class Spikes(NamedTuple):
  """What a spike is: loss or gradient norm above mean + sigmas * std of the accepted steps.

  Attributes:
    sigmas: standard deviations above the mean; positive.
    half_life: accepted steps after which a step counts half in mean and std; positive.
  """

  sigmas: float
  half_life: float


class Verdict(NamedTuple):
  """On one step.

  Attributes:
    finite: whether loss and gradient norm are, bool scalar.
    accepted: whether the update is made, bool scalar.
    limits: float32 [2], what loss and gradient norm must not exceed; None where none is a spike.
  """

  finite: jax.Array
  accepted: jax.Array
  limits: jax.Array | None


class Guard(NamedTuple):
  """What the verdicts of a run so far amount to; part of the train state.

  Mean and variance are of (loss per token, gradient norm), weighted by 2^(-age / half_life) with
  weights that sum to 1 from the first step on. They stay 0 where no step is a spike.

  Attributes:
    skipped_in_a_row: skipped steps since the last accepted one, int32 scalar.
    skipped: skipped steps in all, int32 scalar.
    accepted: steps that mean and variance are made of, int32 scalar.
    mean: float32 [2].
    variance: float32 [2].
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
    """Returns float32 [2], what loss and gradient norm must not exceed; inf until `WARM_UP`."""
    std = jnp.maximum(jnp.sqrt(self.variance), STD_FLOOR * jnp.abs(self.mean))
    return jnp.where(self.accepted >= WARM_UP, self.mean + spikes.sigmas * std, jnp.inf)

  def judge(self, values: jax.Array, spikes: Spikes | None) -> Verdict:
    """Judges a step by what came before it.

    Args:
      values: float32 [2], its loss per token and gradient norm. The norm is over all leaves, so it
        is not finite if a gradient anywhere is not, or if their squares overflow.
      spikes: what a spike is; None if nothing is.
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
      accepted: the verdict, bool scalar.
      values: float32 [2], as judged.
      tokens: target tokens of the step, scalar.
      spikes: as judged.

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
    # The weight of the newest of n steps; by expm1, since a long half-life would round to none.
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
