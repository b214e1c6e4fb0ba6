from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import entropy_position, token_entropy
from egad_jax.losses.entropy import median_ratio


def test_golden_values():
  with jax.enable_x64(True):
    z_t, z_s = np.array([2.0, 1.0, 0.0, -1.0]), np.array([1.0, 1.0, 1.0, 0.0])
    values = [token_entropy(z / t) for z in (z_t, z_s) for t in (1.0, 2.0)]
    np.testing.assert_allclose(values, [0.947537, 1.245050, 1.323515, 1.366834], atol=5e-7)


def test_uniform_and_one_hot():
  np.testing.assert_allclose(token_entropy(jnp.zeros(1000)), np.log(1000), rtol=1e-6)
  one_hot = jnp.array([3.0, -jnp.inf, -jnp.inf])
  assert token_entropy(one_hot) == 0
  assert bool(jnp.all(jnp.isfinite(jax.grad(token_entropy)(one_hot))))
  assert token_entropy(jnp.array([1e4, -1e4])) == 0
  assert token_entropy(jnp.array([5.0])) == 0


def test_bounds_and_invariances():
  logits = 5 * jax.random.normal(jax.random.key(0), (7, 11))
  entropy = token_entropy(logits)
  assert bool(jnp.all((entropy >= 0) & (entropy <= np.log(11) + 1e-6)))
  np.testing.assert_allclose(token_entropy(logits + 3.0), entropy, atol=1e-5)
  np.testing.assert_allclose(token_entropy(logits[:, ::-1]), entropy, atol=1e-6)


def test_gradient_identity():
  with jax.enable_x64(True):
    logits = jax.random.normal(jax.random.key(0), (6,), jnp.float64)
    p = jax.nn.softmax(logits)
    expected = -p * (jnp.log(p) + token_entropy(logits))
    np.testing.assert_allclose(jax.grad(token_entropy)(logits), expected, atol=1e-12)


def test_derivative_in_temperature_is_variance_over_t_cubed():
  with jax.enable_x64(True):
    logits = jax.random.normal(jax.random.key(2), (6,), jnp.float64) * 2
    t = 1.7
    p = jax.nn.softmax(logits / t)
    variance = jnp.sum(p * logits**2) - jnp.sum(p * logits) ** 2
    slope = jax.grad(lambda t: token_entropy(logits / t))(t)
    np.testing.assert_allclose(slope, variance / t**3, rtol=1e-9)
    difference = token_entropy(logits / (t + 1e-5)) - token_entropy(logits / (t - 1e-5))
    np.testing.assert_allclose(difference / 2e-5, variance / t**3, rtol=1e-7)
    warmer = [token_entropy(logits / t) for t in (0.1, 0.5, 1.0, 2.0, 10.0, 100.0)]
    assert bool(jnp.all(jnp.diff(jnp.stack(warmer)) > 0))


def test_hidden_columns_and_dtype():
  logits = jnp.array([[2.0, 1.0, 0.0, -1.0, jnp.nan]], jnp.bfloat16)
  entropy = token_entropy(logits, where=jnp.array([1, 1, 1, 1, 0], bool))
  assert entropy.dtype == jnp.float32
  np.testing.assert_allclose(entropy, [0.947537], atol=1e-6)
  padded = jnp.array([[2.0, 1.0, 0.0, -1.0, -jnp.inf]])
  np.testing.assert_array_equal(token_entropy(padded), token_entropy(padded[:, :4]))


def test_rank_averages_ties_and_ignores_the_masked():
  entropy = jnp.array([[3.0, 1.0, jnp.nan], [1.0, 2.0, -5.0]])
  mask = jnp.array([[True, True, False], [True, True, False]])
  position = entropy_position(entropy, mask)
  np.testing.assert_allclose(position, [[1.0, 1 / 6, 0.5], [1 / 6, 2 / 3, 0.5]], atol=1e-6)
  np.testing.assert_allclose(jnp.mean(position, where=mask), 0.5, atol=1e-6)


def test_minmax():
  entropy = jnp.array([1.0, 2.0, 5.0, jnp.inf])
  position = entropy_position(entropy, jnp.array([1, 1, 1, 0]), kind="minmax")
  np.testing.assert_allclose(position, [0.0, 0.25, 1.0, 0.5], atol=1e-6)


def test_median_ratio_is_scale_free_and_golden():
  entropy = jnp.array([0.1, 0.2, 0.4, 0.8, 0.05])
  mask = jnp.ones(5, bool)
  position = entropy_position(entropy, mask, kind="median_ratio")
  np.testing.assert_allclose(2 * position - 1, [-0.6, 0.0, 0.6, 0.882353, -0.882353], atol=1e-6)
  np.testing.assert_allclose(2 * position - 1, np.tanh(np.log(entropy / 0.2)), atol=1e-6)
  np.testing.assert_allclose(
    entropy_position(13 * entropy, mask, kind="median_ratio"), position, atol=1e-6
  )
  even = entropy_position(entropy[:4], mask[:4], kind="median_ratio")
  np.testing.assert_allclose(even, entropy[:4] ** 2 / (entropy[:4] ** 2 + 0.09), atol=1e-6)
  assert bool(jnp.all(jnp.isfinite(entropy_position(0 * entropy, mask, kind="median_ratio"))))
  assert median_ratio(jnp.float32(0), jnp.float32(0)) == 0.5


@pytest.mark.parametrize("kind", ["rank", "minmax", "median_ratio"])
def test_degenerate_batches(kind):
  lone = entropy_position(jnp.array([2.0, jnp.nan]), jnp.array([True, False]), kind=kind)
  np.testing.assert_array_equal(lone, 0.5)
  equal = entropy_position(jnp.full(4, 0.7), jnp.ones(4, bool), kind=kind)
  np.testing.assert_allclose(equal, 0.5, atol=1e-6)
  nothing = entropy_position(jnp.array([jnp.nan, 1.0]), jnp.zeros(2, bool), kind=kind)
  np.testing.assert_array_equal(nothing, 0.5)


@pytest.mark.parametrize("kind", ["rank", "minmax", "median_ratio"])
def test_position_is_detached_monotone_and_jits(kind):
  entropy = jax.random.uniform(jax.random.key(0), (4, 8))
  mask = jax.random.bernoulli(jax.random.key(1), 0.7, (4, 8))
  position = entropy_position(entropy, mask, kind=kind)
  order = jnp.argsort(entropy[mask])
  assert bool(jnp.all(jnp.diff(position[mask][order]) >= 0))
  jitted = jax.jit(lambda e, m: entropy_position(e, m, kind=kind))(entropy, mask)
  np.testing.assert_allclose(jitted, position, atol=1e-6)
  grad = jax.grad(lambda e: entropy_position(e, mask, kind=kind).sum())(entropy)
  np.testing.assert_array_equal(grad, 0)


def test_misuse():
  with pytest.raises(ValueError, match="kind must be one of rank, minmax, median_ratio, got 'x'"):
    entropy_position(jnp.ones(2), jnp.ones(2, bool), kind="x")
  with pytest.raises(TypeError, match="entropy must be floating point"):
    entropy_position(jnp.arange(2), jnp.ones(2, bool))


@pytest.mark.parametrize("kind", ["rank", "minmax", "median_ratio"])
def test_lower_and_higher_entropies_outside_the_mask_do_not_matter(kind):
  inside = jnp.array([1.0, 2.0, 5.0])
  padded = jnp.concatenate([jnp.array([0.1, 0.2, 0.3, 9.0]), inside])
  position = entropy_position(padded, jnp.arange(7) >= 4, kind=kind)
  expected = entropy_position(inside, jnp.ones(3, bool), kind=kind)
  np.testing.assert_array_equal(position[4:], expected)
