"""Root mean square normalisation (arXiv 1910.07467)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class RMSNorm(nn.Module):
  """x / sqrt(mean(x²) + eps) · scale, computed in float32, returned in the dtype of x.

  Attributes:
    eps: added to the mean square.
    params_dtype: of the scale.
    axis: logical name of the axis that is normalised, the last one.
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
