from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import masked_mean, masked_sum


def test_values():
  values = jnp.array([[1.0, 2.0], [jnp.nan, 6.0]])
  mask = jnp.array([[1, 1], [0, 1]])
  assert masked_sum(values, mask) == 9
  assert masked_mean(values, mask) == 3
  assert jax.jit(masked_mean)(values, mask) == 3
  assert masked_mean(values, jnp.zeros((2, 2))) == 0


def test_gradient_outside_the_mask_is_zero():
  gradient = jax.grad(masked_mean)(jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
  np.testing.assert_array_equal(gradient, [1.0, 0.0])


def test_mask_of_another_shape():
  with pytest.raises(ValueError, match="one entry per token"):
    masked_mean(jnp.ones((2, 3)), jnp.ones(3))
