from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import (
  Temperature,
  adaptive_temperature,
  compensation_factor,
  entropy_position,
)
from egad_jax.losses.temperature import GRADIENT_COMPENSATIONS, check_no_gradient


def test_golden_values():
  entropy = jnp.array([0.1, 0.2, 0.4, 0.8, 0.05])
  position = entropy_position(entropy, jnp.ones(5, bool), kind="median_ratio")
  expected = [1.349859, 1.0, 0.740818, 0.643279, 1.554535]
  np.testing.assert_allclose(adaptive_temperature(position), expected, atol=1e-6)


def test_range_middle_and_direction():
  position = jnp.linspace(0.0, 1.0, 11)
  hot = adaptive_temperature(position, base=2.0, strength=0.7)
  np.testing.assert_allclose(hot[5], 2.0, rtol=1e-6)
  np.testing.assert_allclose([hot[0], hot[-1]], 2 * np.exp([0.7, -0.7]), rtol=1e-6)
  assert bool(jnp.all(jnp.diff(hot) < 0))
  opposite = adaptive_temperature(position, base=2.0, strength=0.7, direction="uncertain_hot")
  np.testing.assert_allclose(opposite, 4.0 / hot, rtol=1e-5)
  np.testing.assert_array_equal(adaptive_temperature(position, strength=0.0, base=1.5), 1.5)


@pytest.mark.parametrize("kind", ["median_ratio", "rank", "minmax"])
def test_temperatures_do_not_depend_on_the_unit_of_entropy(kind):
  entropy, mask = jnp.array([0.1, 0.2, 0.4, 0.8, 0.05]), jnp.ones(5, bool)
  expected = adaptive_temperature(entropy_position(entropy, mask, kind=kind))
  for k in (0.03, 7.0):
    scaled = adaptive_temperature(entropy_position(k * entropy, mask, kind=kind))
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)


def test_confident_teachers_have_finite_temperatures():
  entropy = jnp.array([0.0, 0.0, 0.0, 1e-9, 2.0])  # The median is 0.
  position = entropy_position(entropy, jnp.ones(5, bool), kind="median_ratio")
  temperatures = adaptive_temperature(position)
  np.testing.assert_allclose(temperatures[:4], 1.0, rtol=1e-6)
  np.testing.assert_allclose(temperatures[4], np.exp(-0.5), rtol=1e-6)


def test_clipping():
  clipped = adaptive_temperature(jnp.array([0.0, 0.5, 1.0]), strength=3.0, minimum=0.5, maximum=4.0)
  np.testing.assert_array_equal(clipped, [4.0, 1.0, 0.5])


def test_a_temperature_passes_all_its_options():
  position = jnp.linspace(0.0, 1.0, 5)
  options = {"base": 2.0, "strength": 1.0, "minimum": 1.5, "maximum": 3.0}
  for direction in ("confident_hot", "uncertain_hot"):
    of_position = Temperature(**options, direction=direction).of_position(position)
    expected = adaptive_temperature(position, **options, direction=direction)
    np.testing.assert_array_equal(of_position, expected)
    assert (of_position[0] > of_position[-1]) == (direction == "confident_hot")
    np.testing.assert_array_equal(sorted(of_position)[:: len(position) - 1], [1.5, 3.0])


@pytest.mark.parametrize("kind", ["per_token", "linear", "none", "mean_norm"])
def test_factors_of_low_precision_temperatures_are_float32(kind):
  temperature = jnp.array([1.0078125, 3.0], jnp.bfloat16)
  factor = compensation_factor(temperature, kind=kind, mean_square=2.0)
  assert factor.dtype == jnp.float32
  expected = compensation_factor(temperature.astype(jnp.float32), kind=kind, mean_square=2.0)
  np.testing.assert_array_equal(factor, expected)


def test_compensation():
  t = jnp.array([0.5, 1.0, 3.0])
  np.testing.assert_array_equal(compensation_factor(t), t**2)
  np.testing.assert_array_equal(compensation_factor(t, kind="linear"), t)
  np.testing.assert_array_equal(compensation_factor(t, kind="none"), 1)
  mean = compensation_factor(t, kind="mean_norm", mean_square=jnp.mean(t**2))
  np.testing.assert_allclose(mean.mean(), 1.0, rtol=1e-6)
  np.testing.assert_allclose(mean[2] / mean[0], 36.0, rtol=1e-6)


def test_detached_and_jits():
  position = jnp.linspace(0.0, 1.0, 5)
  np.testing.assert_allclose(
    jax.jit(adaptive_temperature)(position), adaptive_temperature(position), rtol=1e-6
  )
  gradient = jax.grad(lambda p: adaptive_temperature(p).sum())(position)
  np.testing.assert_array_equal(gradient, 0)
  gradient = jax.grad(lambda t: compensation_factor(t).sum())(position)
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "warm"}, "kind must be one of adaptive, mean, fixed, got 'warm'"),
    ({"direction": "up"}, "direction must be one of confident_hot, uncertain_hot, got 'up'"),
    ({"position": "rank"}, "position must be one of cdf, median_ratio, got 'rank'"),
    ({"compensation": "t2"}, "compensation must be one of per_token, linear, none, mean_norm"),
    ({"base": 0.0}, "base must be a positive temperature, got 0.0"),
    ({"base": float("inf")}, "base must be a positive temperature, got inf"),
    ({"strength": -0.5}, "strength must be >= 0 and finite, got -0.5; direction gives the sign"),
    ({"minimum": 0.0}, "0 < minimum <= maximum must hold, got minimum 0.0, maximum 10.0"),
    ({"minimum": 3.0, "maximum": 2.0}, "0 < minimum <= maximum must hold"),
  ],
)
def test_misuse(options, message):
  with pytest.raises(ValueError, match=message):
    Temperature(**options)


def test_misuse_of_functions():
  with pytest.raises(ValueError, match="direction must be one of"):
    adaptive_temperature(jnp.ones(2), direction="up")
  with pytest.raises(TypeError, match="position must be floating point"):
    adaptive_temperature(jnp.arange(2))
  with pytest.raises(ValueError, match="kind must be one of per_token"):
    compensation_factor(1.0, kind="t2")
  with pytest.raises(ValueError, match="mean_norm needs mean_square"):
    compensation_factor(1.0, kind="mean_norm")


@pytest.mark.parametrize("kind", GRADIENT_COMPENSATIONS)
def test_a_compensation_that_reads_the_gradient_is_no_function_of_the_temperature(kind):
  with pytest.raises(ValueError, match="kind must be one of per_token, linear, none, mean_norm, g"):
    compensation_factor(2.0, kind=kind)
  with pytest.raises(ValueError, match=f"compensation '{kind}' is egad's alone; for adakd"):
    check_no_gradient(Temperature(compensation=kind), "adakd")
  check_no_gradient(Temperature(), "adakd")


def test_clips_the_temperature_not_its_ratio_to_the_base():
  position = jnp.array([0.0, 0.5, 1.0])
  clipped = adaptive_temperature(position, base=2.0, strength=1.0, minimum=1.0, maximum=3.0)
  np.testing.assert_array_equal(clipped, [3.0, 2.0, 1.0])


def test_no_gradient_passes_the_mean_square():
  factor = lambda square: compensation_factor(2.0, kind="mean_norm", mean_square=square)
  assert jax.grad(factor)(3.0) == 0


def test_what_is_clipped_or_endless_is_refused():
  with pytest.raises(ValueError, match=r"base must lie between minimum 0\.1 and maximum 10\.0"):
    Temperature(base=100.0)
  assert Temperature(kind="fixed", base=100.0).base == 100
  with pytest.raises(ValueError, match="strength must be >= 0 and finite, got inf"):
    Temperature(strength=float("inf"))


@pytest.mark.parametrize(
  ("elapsed", "expected"),
  [(0.0, [2.0, 1.0, 0.5]), (0.3, [2**0.5, 1.0, 0.5**0.5]), (0.6, [1, 1, 1]), (1.0, [1, 1, 1])],
)
def test_annealed_temperatures_end_at_one(elapsed, expected):
  temperature = Temperature(strength=math.log(2.0), anneal=0.6)
  position = jnp.array([0.0, 0.5, 1.0])
  found = jax.jit(temperature.of_position)(position, jnp.float32(elapsed))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_annealing_needs_to_know_the_time_and_an_adaptive_temperature():
  with pytest.raises(ValueError, match=r"anneal \(0.6\) needs elapsed"):
    Temperature(anneal=0.6).of_position(jnp.array([0.5]))
  with pytest.raises(ValueError, match='must be 0 with kind "fixed"'):
    Temperature(kind="fixed", anneal=0.6)
  with pytest.raises(ValueError, match=r"anneal must be a share of the run in \[0, 1\], got 1.5"):
    Temperature(anneal=1.5)
