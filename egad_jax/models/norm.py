"""Root mean square normalisation (arXiv 1910.07467) and layer normalisation (arXiv 1607.06450)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from egad_jax.models.config import DecoderConfig


class RMSNorm(nn.Module):
  """x / sqrt(mean(x²) + eps) · (scale + offset), in float32, returned in the dtype of x.

  Attributes:
    eps: epsilon added to the mean square.
    params_dtype: dtype of the scale parameter.
    axes: logical names of the last axes, over which x is normalised and which the scale has.
    offset: number added to the scale, which begins as 1 - offset.
  """

  eps: float
  params_dtype: jnp.dtype
  axes: tuple[str, ...] = ("embed",)
  offset: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises `x` `[..., *axes]` over its last axes."""
    init = nn.with_logical_partitioning(nn.initializers.constant(1.0 - self.offset), self.axes)
    scale = self.param("scale", init, x.shape[-len(self.axes) :], self.params_dtype)
    wide = x.astype(jnp.float32)
    over = tuple(range(-len(self.axes), 0))
    inverse = lax.rsqrt(jnp.mean(wide * wide, axis=over, keepdims=True) + self.eps)
    scale = scale.astype(jnp.float32)
    if self.offset:
      scale = scale + self.offset
    scale = jnp.expand_dims(scale, tuple(range(x.ndim - len(self.axes))))
    return (wide * inverse * scale).astype(x.dtype)


class LayerNorm(nn.Module):
  """(x - mean(x)) / sqrt(var(x) + eps) · scale + bias, in float32, returned in the dtype of x.

  Attributes:
    eps: epsilon added to the variance.
    params_dtype: dtype of the parameters `scale` and `bias`, each `[dim]`.
  """

  eps: float
  params_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises `x` `[..., dim]` along its last axis."""

    def vector(name: str, value: float) -> jax.Array:
      init = nn.with_logical_partitioning(nn.initializers.constant(value), ("embed",))
      made = self.param(name, init, (x.shape[-1],), self.params_dtype).astype(jnp.float32)
      return jnp.expand_dims(made, tuple(range(x.ndim - 1)))

    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
    return (centred * inverse * vector("scale", 1.0) + vector("bias", 0.0)).astype(x.dtype)


def residual_norm(config: DecoderConfig, params_dtype: jnp.dtype, name: str) -> nn.Module:
  """The norm of an architecture over the residual stream, `[..., dim]` to the same shape."""
  if config.layer_norm:
    return LayerNorm(config.norm_eps, params_dtype, name=name)
  return RMSNorm(config.norm_eps, params_dtype, offset=config.norm_offset, name=name)
