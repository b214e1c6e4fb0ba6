"""Masked sums and means. The only place where a mask divides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import check_mask


def masked_sum(values: ArrayLike, mask: ArrayLike) -> jax.Array:
  """Sums `values` where `mask` is true, over all axes; what lies outside may be NaN.

  Args:
    values: shape [...].
    mask: bool, shape [...].

  Returns:
    A scalar; 0 when nothing is masked in.
  """
  values = jnp.asarray(values)
  # A product would turn NaN * 0 into NaN.
  return jnp.sum(values, where=check_mask(mask, values.shape))


def masked_mean(values: ArrayLike, mask: ArrayLike) -> jax.Array:
  """Averages `values` where `mask` is true, over all axes.

  Args:
    values: float, shape [...]. What lies outside the mask may be NaN.
    mask: bool, shape [...].

  Returns:
    sum / max(1, count), a scalar; 0 when nothing is masked in.

  >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
  2.0
  """
  values = jnp.asarray(values)
  count = jnp.sum(check_mask(mask, values.shape))
  return masked_sum(values, mask) / jnp.maximum(count, 1).astype(values.dtype)
