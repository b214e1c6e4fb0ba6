"""The guidance of a token by EGAD's mechanisms: temperature, weight and gate from its entropy."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.branch import Branch, hard_from
from egad_jax.losses.curriculum import Curriculum, curriculum_weights
from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.entropy import entropy_position
from egad_jax.losses.reductions import masked_mean
from egad_jax.losses.temperature import Temperature, compensation_factor


class TokenGuidance(NamedTuple):
  """How each token is distilled.

  Attributes:
    temperature: T of the divergence; one number, or one per token, [...].
    factor: compensation factor on the divergence, see `compensation_factor`; likewise. 1 where the
      compensation reads the gradient.
    weight: weight of each token's divergence, [...]; None if no mechanism weights tokens.
    hard: gate of each token, from 0 (easy) to 1 (hard), [...]; None if no mechanism gates tokens.
  """

  temperature: float | jax.Array
  factor: float | jax.Array
  weight: jax.Array | None
  hard: jax.Array | None


def running_guidance(
  entropy: jax.Array,
  *,
  distribution: EntropyDistribution,
  progress: ArrayLike,
  elapsed: ArrayLike,
  curriculum: Curriculum | None,
  temperature: Temperature,
  branch: Branch | None,
) -> TokenGuidance:
  """Returns the guidance of tokens [...] from their entropies' positions in the distribution."""
  weight = hard = None
  position: Any = None  # An array if a mechanism reads it, else None.
  if curriculum is not None or branch is not None:
    position = distribution.position(entropy)
  if curriculum is not None:
    weight = curriculum_weights(position, progress, **dataclasses.asdict(curriculum))
  if branch is not None:
    hard = branch.gate(position, hard_from(distribution, branch))

  def adaptive(entropy: jax.Array) -> jax.Array:
    position = distribution.position(entropy, temperature.position)
    return temperature.of_position(position, elapsed)

  tokens_temperature, factor = temperature_and_factor(
    temperature,
    functools.partial(adaptive, entropy),
    lambda f: distribution.expectation(lambda bins: f(adaptive(bins))),
  )
  return TokenGuidance(tokens_temperature, factor, weight, hard)


def in_batch_guidance(
  entropy: jax.Array,
  *,
  mask: jax.Array,
  progress: ArrayLike,
  elapsed: ArrayLike | None,
  curriculum: Curriculum | None,
  temperature: Temperature,
  branch: Branch | None,
  kind: str,
) -> TokenGuidance:
  """Returns the guidance of tokens [...] from their entropies' positions in their own batch."""
  weight = hard = None
  position: Any = None  # An array if a mechanism reads it, else None.
  if curriculum is not None or branch is not None or temperature.kind != "fixed":
    position = entropy_position(entropy, mask, kind=kind)
  if curriculum is not None:
    options = dataclasses.asdict(curriculum)
    weight = curriculum_weights(position, progress, mask=mask, normalize=True, **options)
  if branch is not None:
    hard = _gate_in_batch(entropy, position, mask, branch)

  def adaptive() -> jax.Array:
    if temperature.position == "median_ratio":
      ratio = entropy_position(entropy, mask, kind="median_ratio")
      return temperature.of_position(ratio, elapsed)
    return temperature.of_position(position, elapsed)

  def mean(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    # The mean over no tokens is 0; as a temperature it would make 0 / 0 in the gradient.
    of_base = function(jnp.asarray(temperature.base, entropy.dtype))
    return jnp.where(jnp.any(mask), masked_mean(function(adaptive()), mask), of_base)

  tokens_temperature, factor = temperature_and_factor(temperature, adaptive, mean)
  return TokenGuidance(tokens_temperature, factor, weight, hard)


def _gate_in_batch(
  entropy: jax.Array, position: jax.Array, mask: jax.Array, branch: Branch
) -> jax.Array:
  """Returns the gate of each token; for a soft gate, a threshold in nats becomes a position."""
  if branch.threshold is None:
    return branch.gate(position, 1 - branch.hard_fraction)
  above = entropy >= branch.threshold
  if branch.softness == 0:
    # Entropies are compared because two tokens on either side may round to the same position.
    return above.astype(position.dtype)
  # The position midway between the nearest tokens on either side of the threshold; if one side is
  # empty, a position well outside [0, 1].
  hardest_below = jnp.max(position, where=mask & ~above, initial=-1)
  easiest_above = jnp.min(position, where=mask & above, initial=2)
  return branch.gate(position, (hardest_below + easiest_above) / 2)


def temperature_and_factor(
  temperature: Temperature,
  adaptive: Callable[[], jax.Array],
  mean: Callable[[Callable[[jax.Array], jax.Array]], jax.Array],
) -> tuple[float | jax.Array, float | jax.Array]:
  """Returns the temperature, a number or one per token, and its compensation factor.

  Args:
    temperature: the kind of temperature and of compensation.
    adaptive: () -> the adaptive temperature of each token, [...].
    mean: function of temperatures -> its expectation over the adaptive temperatures, a scalar.
  """
  kind = "none" if temperature.reads_gradient else temperature.compensation
  if temperature.kind == "adaptive":
    value = adaptive()
    mean_square = mean(jnp.square) if kind == "mean_norm" else None
    return value, compensation_factor(value, kind=kind, mean_square=mean_square)
  if temperature.kind == "mean":
    value = mean(lambda t: t)
    return value, compensation_factor(value, kind=kind, mean_square=value**2)
  base = float(temperature.base)
  return base, {"per_token": base**2, "linear": base, "none": 1.0, "mean_norm": 1.0}[kind]
