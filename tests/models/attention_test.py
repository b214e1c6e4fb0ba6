"""Tests of the attention masks; the attention itself is tested with the decoder."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from egad_jax.models.attention import cached_mask, packed_mask


def test_packed_mask_is_causal_within_segments():
  segments = jnp.array([[1, 1, 2, 2, 2, 0]])
  positions = jnp.array([[0, 1, 0, 1, 2, 0]])
  wanted = np.array(
    [
      [1, 0, 0, 0, 0, 0],
      [1, 1, 0, 0, 0, 0],
      [0, 0, 1, 0, 0, 0],
      [0, 0, 1, 1, 0, 0],
      [0, 0, 1, 1, 1, 0],
      [0, 0, 0, 0, 0, 1],
    ]
  )
  np.testing.assert_array_equal(packed_mask(positions, segments)[0, 0], wanted)


def test_packed_mask_with_a_window():
  positions = jnp.arange(4)[None]
  mask = packed_mask(positions, jnp.ones((1, 4), jnp.int32), window=2)
  wanted = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
  np.testing.assert_array_equal(mask[0, 0], wanted)


def test_cached_mask_skips_empty_places():
  keys = jnp.array([[0, 1, -1, 2, -1]])
  mask = cached_mask(jnp.array([[1, 2]]), keys)
  np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0, 0, 0], [1, 1, 0, 1, 0]])
  mask = cached_mask(jnp.array([[1, 2]]), keys, window=2)
  np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0, 0, 0], [0, 1, 0, 1, 0]])
