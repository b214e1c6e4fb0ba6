"""Mutations of EGAD's curriculum and temperature."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_CURRICULUM = [
  (
    "stop-gradient",
    "gradient flows through the position",
    'position = jax.lax.stop_gradient(promote("position", position))',
    'position = promote("position", position)',
  ),
  (
    "clip",
    "a traced progress beyond 1 goes on",
    'progress = check_progress("progress", progress).astype(position.dtype)',
    "progress = jax.lax.stop_gradient(jnp.asarray(progress, position.dtype))",
  ),
  (
    "mask",
    "the mean is over all tokens",
    "mean = masked_mean(weights, mask)",
    "mean = jnp.mean(weights)",
  ),
  (
    "normaliser",
    "normalized weights are not divided by their mean",
    "weights / jnp.where(mean > 0, mean, 1), 1)",
    "weights, 1)",
  ),
  (
    "double where",
    "weights that all vanish stay 0",
    "weights = jnp.where(mean > 0, weights / jnp.where(mean > 0, mean, 1), 1)",
    "weights = weights / jnp.where(mean > 0, mean, 1)",
  ),
  (
    "mask",
    "tokens outside the mask have weights",
    "return jnp.where(mask, weights, 0)",
    "return weights",
  ),
  (
    "sign",
    "linear: the focus moves to low entropy",
    "return 2 * ((1 - progress) * (1 - position) + progress * position)",
    "return 2 * (progress * (1 - position) + (1 - progress) * position)",
  ),
  (
    "normaliser",
    "linear: mean 1/2",
    "return 2 * ((1 - progress)",
    "return ((1 - progress)",
  ),
  (
    "sign",
    "window: moves down",
    "start = progress * (1 - shape.width)",
    "start = (1 - progress) * (1 - shape.width)",
  ),
  (
    "normaliser",
    "window: leaves [0, 1] at the end",
    "start = progress * (1 - shape.width)",
    "start = progress",
  ),
  (
    "comparison",
    "window: open below",
    "inside = (position >= start)",
    "inside = (position > start)",
  ),
  (
    "comparison",
    "window: open above",
    "& (position <= start + shape.width)",
    "& (position < start + shape.width)",
  ),
  (
    "normaliser",
    "window: not over its width",
    "jnp.where(inside, 1 / shape.width, 0)",
    "jnp.where(inside, 1, 0)",
  ),
  (
    "temperature",
    "competence: c0 for c0^2",
    "squared = shape.competence**2",
    "squared = shape.competence",
  ),
  (
    "temperature",
    "competence: without the root",
    "competence = jnp.sqrt(progress * (1 - squared) + squared)",
    "competence = progress * (1 - squared) + squared",
  ),
  (
    "comparison",
    "competence: the hard tokens first",
    "jnp.where(position <= competence, 1 / competence, 0)",
    "jnp.where(position >= competence, 1 / competence, 0)",
  ),
  (
    "comparison",
    "competence: < for <=",
    "jnp.where(position <= competence, 1 / competence, 0)",
    "jnp.where(position < competence, 1 / competence, 0)",
  ),
  (
    "normaliser",
    "competence: not over c",
    "jnp.where(position <= competence, 1 / competence, 0)",
    "jnp.where(position <= competence, jnp.ones_like(position), 0)",
  ),
  (
    "sign",
    "exponential: the focus moves to low entropy",
    "tilt = shape.strength * (2 * progress - 1)",
    "tilt = shape.strength * (1 - 2 * progress)",
  ),
  (
    "sign",
    "exponential: falls with the position",
    "return largest * jnp.exp(tilt * position - jnp.maximum(tilt, 0))",
    "return largest * jnp.exp(-tilt * position - jnp.maximum(-tilt, 0))",
  ),
  (
    "normaliser",
    "exponential: not over its integral",
    "return largest * jnp.exp(tilt * position - jnp.maximum(tilt, 0))",
    "return jnp.exp(tilt * position - jnp.maximum(tilt, 0))",
  ),
  (
    "double where",
    "exponential: 0 / 0 at the neutral point",
    "largest = jnp.where(flat, 1, steep / jnp.where(flat, 1, -jnp.expm1(-steep)))",
    "largest = steep / -jnp.expm1(-steep)",
  ),
  (
    "sign",
    "exponential: a falling curriculum has the largest weight of a rising one",
    "flat, steep = tilt == 0, jnp.abs(tilt)",
    "flat, steep = tilt == 0, tilt",
  ),
  (
    "clip",
    "exponential: measured from position 1 also while it falls",
    "return largest * jnp.exp(tilt * position - jnp.maximum(tilt, 0))",
    "return largest * jnp.exp(tilt * position - tilt)",
  ),
  (
    "clip",
    "exponential: overflows when it is steep",
    "return largest * jnp.exp(tilt * position - jnp.maximum(tilt, 0))",
    "return largest * jnp.exp(-jnp.maximum(tilt, 0)) * jnp.exp(tilt * position)",
  ),
]

_TEMPERATURE = [
  (
    "stop-gradient",
    "gradient flows through the position",
    'position = jax.lax.stop_gradient(promote("position", position))',
    'position = promote("position", position)',
  ),
  (
    "sign",
    "the direction is turned round",
    "exponent = DIRECTIONS[direction] * strength * (2 * position - 1)",
    "exponent = -DIRECTIONS[direction] * strength * (2 * position - 1)",
  ),
  (
    "sign",
    "the direction is ignored",
    "exponent = DIRECTIONS[direction] * strength * (2 * position - 1)",
    "exponent = -strength * (2 * position - 1)",
  ),
  (
    "off by one",
    "base at position 0",
    "strength * (2 * position - 1)",
    "strength * 2 * position",
  ),
  (
    "normaliser",
    "half the strength",
    "strength * (2 * position - 1)",
    "strength * (position - 0.5)",
  ),
  (
    "clip",
    "no clip",
    "return jnp.clip(base * jnp.exp(exponent), minimum, maximum)",
    "return base * jnp.exp(exponent)",
  ),
  (
    "clip",
    "no upper clip",
    "return jnp.clip(base * jnp.exp(exponent), minimum, maximum)",
    "return jnp.maximum(base * jnp.exp(exponent), minimum)",
  ),
  (
    "clip",
    "the exponential is clipped before the base",
    "return jnp.clip(base * jnp.exp(exponent), minimum, maximum)",
    "return base * jnp.clip(jnp.exp(exponent), minimum, maximum)",
  ),
  (
    "stop-gradient",
    "gradient flows through the compensation",
    'temperature = jax.lax.stop_gradient(promote("temperature", temperature))',
    'temperature = promote("temperature", temperature)',
  ),
  (
    "temperature",
    "per token: T for T^2",
    '"per_token":\n    return temperature**2\n',
    '"per_token":\n    return temperature\n',
  ),
  (
    "temperature",
    "linear: T^2 for T",
    '"linear":\n    return temperature\n',
    '"linear":\n    return temperature**2\n',
  ),
  (
    "temperature",
    "none: T for 1",
    "return jnp.ones_like(temperature)",
    "return temperature",
  ),
  (
    "temperature",
    "mean_norm: T for T^2",
    "return temperature**2 / jax",
    "return temperature / jax",
  ),
  (
    "normaliser",
    "mean_norm: not over the mean",
    "return temperature**2 / jax.lax.stop_gradient(jnp.asarray(mean_square))",
    "return temperature**2",
  ),
  (
    "stop-gradient",
    "mean_norm: gradient flows through the mean",
    "return temperature**2 / jax.lax.stop_gradient(jnp.asarray(mean_square))",
    "return temperature**2 / jnp.asarray(mean_square)",
  ),
]

_NUMBER = [
  (
    "options",
    "a number is the base of an adaptive temperature",
    'return Temperature(kind="fixed", base=temperature)',
    "return Temperature(base=temperature)",
  ),
]

MUTATIONS = (
  *of_file("losses/curriculum.py", ["losses/curriculum_test.py"], _CURRICULUM),
  *of_file("losses/temperature.py", ["losses/temperature_test.py"], _TEMPERATURE),
  *of_file("losses/temperature.py", ["losses/egad_test.py"], _NUMBER),
)

EQUIVALENTS: tuple[Equivalent, ...] = ()
