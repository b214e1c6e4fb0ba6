"""Rotary position embeddings in the half-split layout that Hugging Face uses for Llama."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from egad_jax.models.config import LinearRopeScaling, RopeScaling


def frequencies(head_dim: int, *, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
  """Angular frequencies in radians per position, float32 `[head_dim // 2]`.

  Args:
    head_dim: width of one attention head, even.
    theta: base of the geometric series of wavelengths.
    scaling: scaling of the frequencies; None for none.
  """
  plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  if scaling is not None:
    plain = plain / scaling_factors(plain, scaling)
  return plain.astype(np.float32)


def scaling_factors(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  """The divisor of each unscaled frequency, `[head_dim // 2]`, from 1 to `scaling.factor`.

  Llama 3's is as in Meta's reference code of Llama 3.1: 1 / factor is interpolated linearly in the
  number of turns that a frequency makes over the original context.

  Args:
    plain: float64 `[head_dim // 2]`, unscaled frequencies in radians per position.
    scaling: the scaling.
  """
  if isinstance(scaling, LinearRopeScaling):
    return np.full_like(plain, scaling.factor)
  turns = scaling.original_max_seq_len * plain / (2 * math.pi)
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)


def rotations(positions: jax.Array, freqs: np.ndarray) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the angles, each float32 `[batch, seq, 1, head_dim // 2]`.

  Args:
    positions: int32 `[batch, seq]`.
    freqs: `[head_dim // 2]`, from `frequencies`.
  """
  angles = positions.astype(jnp.float32)[:, :, None, None] * jnp.asarray(freqs)[None, None, None, :]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates each pair (i, i + head_dim/2) of `x` `[batch, seq, heads, head_dim]`, in float32."""
  cos, sin = cos_sin
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x.dtype)
