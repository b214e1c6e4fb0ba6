"""The MLP of a layer: one for all tokens, or a mixture of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from egad_jax.models.attention import Constrain
from egad_jax.models.config import DecoderConfig
from egad_jax.models.dense import project

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": nn.silu,
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
  "gelu": functools.partial(nn.gelu, approximate=False),
}


class MLP(nn.Module):
  """The MLP of a layer: down(f(gate(x)) · up(x)), or down(f(up(x))) without a gate."""

  config: DecoderConfig
  dtype: jnp.dtype
  params_dtype: jnp.dtype
  constrain: Constrain

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` `[batch, seq, dim]` to the same shape."""
    c = self.config
    function = _ACTIVATIONS[c.activation]
    if c.gated_mlp:
      gate = self._project("gate", x, c.mlp_dim, ("embed", "mlp"), 1.0)
    up = self._project("up", x, c.mlp_dim, ("embed", "mlp"), 1.0)
    inner = function(gate) * up if c.gated_mlp else function(up)
    inner = self.constrain(inner, ("batch", "seq", "mlp"))
    # Small, so that the residual stream does not grow with depth.
    return self._project("down", inner, c.dim, ("mlp", "embed"), 1.0 / (2 * c.num_layers))

  def _project(
    self, name: str, x: jax.Array, width: int, axes: tuple[str, str], scale: float
  ) -> jax.Array:
    init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    init = nn.with_logical_partitioning(init, axes)
    kernel = self.param(name, init, (x.shape[-1], width), self.params_dtype)
    y = project(x, kernel.astype(self.dtype))
    if not self.config.mlp_bias:
      return y
    zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes[1:])
    bias = self.param(f"{name}_bias", zeros, (width,), self.params_dtype)
    return y + bias.astype(self.dtype)[None, None]


class ExpertMLPs(nn.Module):
  """A mixture of experts: each token adds up the outputs of the experts that its router chooses.

  The tokens are sorted by expert, so that the products with all experts' weights are one grouped
  product, of as many rows as tokens times chosen experts. No token is dropped.
  """

  config: DecoderConfig
  dtype: jnp.dtype
  params_dtype: jnp.dtype
  constrain: Constrain

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` `[batch, seq, dim]` to the same shape."""
    c, experts = self.config, self.config.experts
    assert experts is not None
    chosen, count = experts.chosen, experts.count
    router = self._weight("router", (c.dim, count), ("embed", None), 1.0)
    flat = x.reshape(-1, c.dim)
    # Softmax in float32, as everywhere; the products are in the compute dtype, as in training.
    probs = jax.nn.softmax((flat @ router).astype(jnp.float32), axis=-1)
    weights, ids = lax.top_k(probs, chosen)
    if experts.renormalize:
      weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    order = jnp.argsort(ids.reshape(-1))
    sizes = jnp.bincount(ids.reshape(-1), length=count).astype(jnp.int32)
    rows = flat[order // chosen]
    inner_axes, outer_axes = ("experts", "embed", None), ("experts", None, "embed")
    gate = self._weight("gate", (count, c.dim, experts.mlp_dim), inner_axes, 1.0)
    up = self._weight("up", (count, c.dim, experts.mlp_dim), inner_axes, 1.0)
    scale = 1.0 / (2 * c.num_layers)
    down = self._weight("down", (count, experts.mlp_dim, c.dim), outer_axes, scale)
    function = _ACTIVATIONS[c.activation]
    inner = function(lax.ragged_dot(rows, gate, sizes)) * lax.ragged_dot(rows, up, sizes)
    outputs = lax.ragged_dot(inner, down, sizes).astype(jnp.float32)
    outputs = outputs * weights.reshape(-1)[order][:, None]
    unsorted = outputs[jnp.argsort(order)].reshape(*ids.shape, c.dim)
    return jnp.sum(unsorted, axis=1).astype(self.dtype).reshape(x.shape)

  def _weight(
    self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float
  ) -> jax.Array:
    init = nn.initializers.variance_scaling(
      scale, "fan_in", "truncated_normal", batch_axis=tuple(range(len(shape) - 2))
    )
    init = nn.with_logical_partitioning(init, axes)
    return self.param(name, init, shape, self.params_dtype).astype(self.dtype)
