"""Masked sums, means and medians."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import check_mask, promote


def masked_sum(values: ArrayLike, mask: ArrayLike) -> jax.Array:
  """Sums `values` where `mask` is true, over all axes.

  Args:
    values: any numeric dtype, shape [...]. Values outside the mask may be NaN.
    mask: bool, shape [...], true at values to sum.

  Returns:
    A scalar; 0 when nothing is masked in.
  """
  values = jnp.asarray(values)
  # A product would turn NaN * 0 into NaN.
  return jnp.sum(values, where=check_mask(mask, values.shape))


def masked_mean(values: ArrayLike, mask: ArrayLike) -> jax.Array:
  """Averages `values` where `mask` is true, over all axes.

  Args:
    values: float, shape [...]. Values outside the mask may be NaN.
    mask: bool, shape [...], true at values to average.

  Returns:
    sum / max(1, count), a scalar; 0 when nothing is masked in.

  >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
  2.0
  """
  values = jnp.asarray(values)
  count = jnp.sum(check_mask(mask, values.shape))
  return masked_sum(values, mask) / jnp.maximum(count, 1).astype(values.dtype)


def masked_median(values: ArrayLike, mask: ArrayLike, *, lower: bool = False) -> jax.Array:
  """Returns the median of the masked values, over all axes.

  Args:
    values: float, shape [...]. Values outside the mask are ignored.
    mask: bool, shape [...], true at values that count.
    lower: whether the median of an even number of values is the lower of the middle two, as in
      PyTorch, instead of their mean.

  Returns:
    A scalar, detached; infinite when nothing is masked in.

  Raises:
    TypeError: `values` are not floating point.
    ValueError: shapes differ.

  >>> values, mask = jnp.array([4.0, 1.0, 2.0, 3.0, 9.0]), jnp.array([1, 1, 1, 1, 0])
  >>> float(masked_median(values, mask)), float(masked_median(values, mask, lower=True))
  (2.5, 2.0)
  """
  values = jax.lax.stop_gradient(promote("values", values))
  mask = check_mask(mask, values.shape)
  ordered = jnp.sort(jnp.where(mask, values, jnp.inf).reshape(-1))
  count = jnp.sum(mask)
  low = ordered[jnp.maximum(count - 1, 0) // 2]
  return low if lower else (low + ordered[count // 2]) / 2
