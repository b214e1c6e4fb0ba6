"""Tests of the rotary embedding against its definition."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.models import rotary
from egad_jax.models.config import Llama3RopeScaling


def test_rotation_is_complex_multiplication():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 3, 4, 8)).astype(np.float32)
  positions = np.array([[0, 1, 7], [5, 0, 2]], np.int32)
  freqs = rotary.frequencies(8, theta=100.0)
  got = rotary.rotate(jnp.asarray(x), rotary.rotations(jnp.asarray(positions), freqs))

  turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(
    1j * positions[:, :, None, None] * 100.0 ** (-np.arange(4) / 4)
  )
  np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


def test_products_depend_on_distance_only():
  rng = np.random.default_rng(1)
  query, key = rng.standard_normal((2, 1, 1, 1, 16)).astype(np.float32)
  freqs = rotary.frequencies(16, theta=10_000.0)

  def product(i, j):
    a, b = (rotary.rotations(jnp.full((1, 1), n), freqs) for n in (i, j))
    return float(jnp.sum(rotary.rotate(jnp.asarray(query), a) * rotary.rotate(jnp.asarray(key), b)))

  assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
  assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-3)


def test_llama3_scaling_keeps_fast_and_slows_slow_frequencies():
  scaling = Llama3RopeScaling(factor=8.0, original_max_seq_len=8192)
  plain = rotary.frequencies(128, theta=500_000.0).astype(np.float64)
  factors = rotary.scaling_factors(plain, scaling)
  wavelengths = 2 * np.pi / plain
  np.testing.assert_allclose(factors[wavelengths < 8192 / 4], 1.0)
  np.testing.assert_allclose(factors[wavelengths > 8192], 8.0)
  between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
  assert between.any()
  # The formula of Meta's reference code, as it is written there.
  smooth = (8192 / wavelengths - 1) / (4 - 1)
  wanted = (1 - smooth) * plain / 8 + smooth * plain
  np.testing.assert_allclose((plain / factors)[between], wanted[between])
  np.testing.assert_allclose(
    rotary.frequencies(128, theta=500_000.0, scaling=scaling), plain / factors, rtol=1e-6
  )
