"""Root mean square normalisation (arXiv 1910.07467)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class RMSNorm(nn.Module):
  """x / sqrt(mean(x²) + eps) · scale, computed in float32, returned in the dtype of x.

  Attributes:
    eps: epsilon added to the mean square.
    params_dtype: dtype of the scale parameter, which has shape `[dim]`.
    axis: logical name of the last axis, along which x is normalised.
  """

  eps: float
  params_dtype: jnp.dtype
  axis: str = "embed"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises `x` `[..., dim]` along its last axis."""
    init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
    scale = self.param("scale", init, (x.shape[-1],), self.params_dtype)
    wide = x.astype(jnp.float32)
    inverse = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
    scale = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return (wide * inverse * scale).astype(x.dtype)
