from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import masked_mean, masked_sum
from egad_jax.losses.reductions import masked_median


def test_values():
  values = jnp.array([[1.0, 2.0], [jnp.nan, 6.0]])
  mask = jnp.array([[1, 1], [0, 1]])
  assert masked_sum(values, mask) == 9
  assert masked_mean(values, mask) == 3
  assert jax.jit(masked_mean)(values, mask) == 3
  assert masked_mean(values, jnp.zeros((2, 2), bool)) == 0


def test_gradient_outside_the_mask_is_zero():
  gradient = jax.grad(masked_mean)(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
  np.testing.assert_array_equal(gradient, [1.0, 0.0])


def test_mask_of_another_shape():
  with pytest.raises(ValueError, match="one entry per token"):
    masked_mean(jnp.ones((2, 3)), jnp.ones(3, bool))


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_median(n):
  values = np.random.default_rng(n).random(9).astype(np.float32)
  mask = np.arange(9) < n
  shuffled = np.random.default_rng(0).permutation(9).reshape(3, 3)
  hidden = np.where(mask, values, np.nan)
  exact = masked_median(hidden[shuffled], mask[shuffled])
  np.testing.assert_allclose(exact, np.median(values[:n]), rtol=1e-6)
  lower = masked_median(hidden[shuffled], mask[shuffled], lower=True)
  assert float(lower) == np.sort(values[:n])[(n - 1) // 2]


def test_median_of_nothing_and_gradient():
  values, nothing = jnp.array([1.0, 2.0]), jnp.zeros(2, bool)
  assert float(masked_median(values, nothing)) == np.inf
  gradient = jax.grad(lambda x: masked_median(x, jnp.ones(2, bool)))(values)
  np.testing.assert_array_equal(gradient, 0)


def test_a_mask_is_no_weight():
  with pytest.raises(TypeError, match=r"mask must be bool .* got float32; a mask is no weight"):
    masked_mean(jnp.ones(3), jnp.array([0.5, 0.5, 1.0]))
  with pytest.raises(TypeError, match="floating point"):
    masked_median(jnp.arange(3), jnp.ones(3, bool))
  with pytest.raises(ValueError, match="mask must have shape"):
    masked_median(jnp.ones(3), jnp.ones(2, bool))


def test_a_number_is_an_array_of_one():
  assert masked_sum(2.5, True) == 2.5
