from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import entropy_position, token_entropy
from egad_jax.losses.entropy import median_ratio

entropy_of = jax.jit(token_entropy)
place = jax.jit(entropy_position, static_argnames="kind")


def softmax(z):
  weights = np.exp(z - z.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def test_golden_values():
  with jax.enable_x64(True):
    z_t, z_s = np.array([2.0, 1.0, 0.0, -1.0]), np.array([1.0, 1.0, 1.0, 0.0])
    values = [entropy_of(z / t) for z in (z_t, z_s) for t in (1.0, 2.0)]
    np.testing.assert_allclose(values, [0.947537, 1.245050, 1.323515, 1.366834], atol=5e-7)


def test_uniform_and_one_hot():
  uniform = np.zeros(1000, np.float32)
  np.testing.assert_allclose(entropy_of(uniform), np.log(1000), rtol=1e-6)
  one_hot = np.array([3.0, -np.inf, -np.inf], np.float32)
  assert entropy_of(one_hot) == 0
  assert np.all(np.isfinite(jax.jit(jax.grad(token_entropy))(one_hot)))
  assert entropy_of(np.array([1e4, -1e4, -1e4], np.float32)) == 0
  assert entropy_of(np.array([5.0], np.float32)) == 0


def test_bounds_and_invariances():
  logits = 5 * np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32)
  entropy = np.asarray(entropy_of(logits))
  assert np.all((entropy >= 0) & (entropy <= np.log(11) + 1e-6))
  np.testing.assert_allclose(entropy_of(logits + 3), entropy, atol=1e-5)
  np.testing.assert_allclose(entropy_of(logits[:, ::-1]), entropy, atol=1e-6)


def test_gradient_identity():
  with jax.enable_x64(True):
    logits = np.random.default_rng(0).normal(size=6)
    p = softmax(logits)
    entropy, gradient = jax.jit(jax.value_and_grad(token_entropy))(logits)
    np.testing.assert_allclose(gradient, -p * (np.log(p) + entropy), atol=1e-12)


def test_derivative_in_temperature_is_variance_over_t_cubed():
  with jax.enable_x64(True):
    logits = 2 * np.random.default_rng(2).normal(size=6)
    t = 1.7
    p = softmax(logits / t)
    variance = np.sum(p * logits**2) - np.sum(p * logits) ** 2
    slope = jax.jit(jax.grad(lambda t: token_entropy(logits / t)))(t)
    np.testing.assert_allclose(slope, variance / t**3, rtol=1e-9)
    difference = entropy_of(logits / (t + 1e-5)) - entropy_of(logits / (t - 1e-5))
    np.testing.assert_allclose(difference / 2e-5, variance / t**3, rtol=1e-7)
    warmer = [entropy_of(logits / t) for t in (0.1, 0.5, 1.0, 2.0, 10.0, 100.0)]
    assert np.all(np.diff(warmer) > 0)


def test_hidden_columns_and_dtype():
  logits = np.array([[2.0, 1.0, 0.0, -1.0, np.nan]], jnp.bfloat16)
  entropy = entropy_of(logits, where=np.array([1, 1, 1, 1, 0], bool))
  assert entropy.dtype == jnp.float32
  np.testing.assert_allclose(entropy, [0.947537], atol=1e-6)
  padded = np.array([[2.0, 1.0, 0.0, -1.0, -np.inf]], np.float32)
  np.testing.assert_array_equal(entropy_of(padded), entropy_of(padded[:, :4]))


def test_rank_averages_ties_and_ignores_the_masked():
  entropy = np.array([[3.0, 1.0, np.nan], [1.0, 2.0, -5.0]], np.float32)
  mask = np.array([[True, True, False], [True, True, False]])
  position = np.asarray(place(entropy, mask))
  np.testing.assert_allclose(position, [[1.0, 1 / 6, 0.5], [1 / 6, 2 / 3, 0.5]], atol=1e-6)
  np.testing.assert_allclose(np.mean(position, where=mask), 0.5, atol=1e-6)


def test_minmax():
  entropy = np.array([1.0, 2.0, 5.0, np.inf], np.float32)
  position = place(entropy, np.array([1, 1, 1, 0]), kind="minmax")
  np.testing.assert_allclose(position, [0.0, 0.25, 1.0, 0.5], atol=1e-6)


def test_median_ratio_is_scale_free_and_golden():
  entropy = np.array([0.1, 0.2, 0.4, 0.8, 0.05], np.float32)
  mask = np.ones(5, bool)
  compute = lambda entropy, mask: np.asarray(place(entropy, mask, kind="median_ratio"))
  position = compute(entropy, mask)
  np.testing.assert_allclose(2 * position - 1, [-0.6, 0.0, 0.6, 0.882353, -0.882353], atol=1e-6)
  np.testing.assert_allclose(2 * position - 1, np.tanh(np.log(entropy / 0.2)), atol=1e-6)
  np.testing.assert_allclose(compute(13 * entropy, mask), position, atol=1e-6)
  even = compute(entropy[:4], mask[:4])
  np.testing.assert_allclose(even, entropy[:4] ** 2 / (entropy[:4] ** 2 + 0.09), atol=1e-6)
  assert np.all(np.isfinite(compute(0 * entropy, mask)))
  assert median_ratio(jnp.float32(0), jnp.float32(0)) == 0.5


@pytest.mark.parametrize("kind", ["rank", "minmax", "median_ratio"])
def test_degenerate_batches(kind):
  of = lambda *entropy: np.array(entropy, np.float32)
  lone = place(of(2.0, np.nan), np.array([True, False]), kind=kind)
  np.testing.assert_array_equal(lone, 0.5)
  equal = place(of(0.7, 0.7, 0.7, 0.7), np.ones(4, bool), kind=kind)
  np.testing.assert_allclose(equal, 0.5, atol=1e-6)
  nothing = place(of(np.nan, 1.0), np.zeros(2, bool), kind=kind)
  np.testing.assert_array_equal(nothing, 0.5)


@pytest.mark.parametrize("kind", ["rank", "minmax", "median_ratio"])
def test_position_is_detached_monotone_and_jits(kind):
  rng = np.random.default_rng(0)
  entropy = rng.random((4, 8), np.float32)
  mask = rng.random((4, 8)) < 0.7
  position = np.asarray(entropy_position(entropy, mask, kind=kind))
  order = np.argsort(entropy[mask])
  assert np.all(np.diff(position[mask][order]) >= 0)
  np.testing.assert_allclose(place(entropy, mask, kind=kind), position, atol=1e-6)
  grad = jax.jit(jax.grad(lambda e: entropy_position(e, mask, kind=kind).sum()))(entropy)
  np.testing.assert_array_equal(grad, 0)


def test_misuse():
  with pytest.raises(ValueError, match="kind must be one of rank, minmax, median_ratio, got 'x'"):
    entropy_position(jnp.ones(2), jnp.ones(2, bool), kind="x")
  with pytest.raises(TypeError, match="entropy must be floating point"):
    entropy_position(jnp.arange(2), jnp.ones(2, bool))


@pytest.mark.parametrize("kind", ["rank", "minmax", "median_ratio"])
def test_lower_and_higher_entropies_outside_the_mask_do_not_matter(kind):
  padded = np.array([0.1, 0.2, 0.3, 9.0, 1.0, 2.0, 5.0], np.float32)
  position = np.asarray(place(padded, np.arange(7) >= 4, kind=kind))
  expected = place(padded[4:], np.ones(3, bool), kind=kind)
  np.testing.assert_array_equal(position[4:], expected)
