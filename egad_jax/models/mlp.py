"""The MLP of a layer: one for all tokens, or a mixture of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from egad_jax import sharding
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
  product, of as many rows as tokens times chosen experts. No token is dropped. On a mesh every
  device has some of the experts and its own rows of the batch; the devices that share rows add up
  their experts' outputs.

  Attributes:
    config: the architecture, with experts.
    dtype: the compute dtype.
    params_dtype: dtype of the parameters.
    mesh: the mesh over which the arrays are sharded; None for one device.
  """

  config: DecoderConfig
  dtype: jnp.dtype
  params_dtype: jnp.dtype
  mesh: jax.sharding.Mesh | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` `[batch, seq, dim]` to the same shape."""
    c, experts = self.config, self.config.experts
    assert experts is not None
    count, width = experts.count, experts.mlp_dim
    router = self._weight("router", (c.dim, count), ("embed", None), 1.0)
    # Softmax in float32, as everywhere; the products are in the compute dtype, as in training.
    probs = jax.nn.softmax(project(x, router).astype(jnp.float32), axis=-1)
    weights, ids = lax.top_k(probs, experts.chosen)
    if experts.renormalize:
      weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    inner, outer = ("experts", "embed", None), ("experts", None, "embed")
    gate = self._weight("gate", (count, c.dim, width), inner, 1.0)
    up = self._weight("up", (count, c.dim, width), inner, 1.0)
    down = self._weight("down", (count, width, c.dim), outer, 1.0 / (2 * c.num_layers))
    arrays = (x, weights, ids, gate, up, down)
    function = functools.partial(_grouped, _ACTIVATIONS[c.activation])
    if self.mesh is None:
      return function(*arrays)
    axis = sharding.experts_axis(self.mesh, count)
    rows, whole = ("batch", "seq", None), ("experts", None, None)
    split = functools.partial(function, axis=axis)
    return sharding.split(self.mesh, split, (rows,) * 3 + (whole,) * 3)(*arrays)

  def _weight(
    self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float
  ) -> jax.Array:
    init = nn.initializers.variance_scaling(
      scale, "fan_in", "truncated_normal", batch_axis=tuple(range(len(shape) - 2))
    )
    init = nn.with_logical_partitioning(init, axes)
    return self.param(name, init, shape, self.params_dtype).astype(self.dtype)


def _grouped(
  activation: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  weights: jax.Array,
  ids: jax.Array,
  gate: jax.Array,
  up: jax.Array,
  down: jax.Array,
  *,
  axis: str | None = None,
) -> jax.Array:
  """The weighted sum of the outputs of each token's experts.

  Args:
    activation: the function between the products.
    x: `[batch, seq, dim]`.
    weights: float32 `[batch, seq, chosen]`, weight of each chosen expert.
    ids: int32 `[batch, seq, chosen]`, the chosen experts.
    gate: `[experts, dim, mlp_dim]`, of all experts or of those of this device.
    up: `[experts, dim, mlp_dim]`.
    down: `[experts, mlp_dim, dim]`.
    axis: mesh axis over which the experts are split; None if all are here.

  Returns:
    `[batch, seq, dim]` in the dtype of `x`.
  """
  count, chosen, dim = gate.shape[0], ids.shape[-1], x.shape[-1]
  own = ids.reshape(-1) - (0 if axis is None else lax.axis_index(axis) * count)
  # Experts of other devices sort behind those that are here, into no group.
  own = jnp.where((own >= 0) & (own < count), own, count)
  order = jnp.argsort(own)
  # A comparison with every expert: TPUs scatter, as `jnp.bincount` does, one index after another.
  sizes = jnp.sum(own[:, None] == jnp.arange(count)[None], axis=0, dtype=jnp.int32)
  rows = x.reshape(-1, dim)[order // chosen]
  inner = activation(lax.ragged_dot(rows, gate, sizes)) * lax.ragged_dot(rows, up, sizes)
  # Back in the tokens' order in the compute dtype, so that no float32 array has a row for each
  # chosen expert. Rows of no group are not written: `where` keeps what they hold out of the sum.
  outputs = lax.ragged_dot(inner, down, sizes)[jnp.argsort(order)].reshape(-1, chosen, dim)
  here = (own < count).reshape(-1, chosen, 1)
  weights = weights.reshape(-1, chosen, 1)
  total = jnp.sum(jnp.where(here, outputs.astype(jnp.float32), 0) * weights, axis=1)
  if axis is not None:
    total = lax.psum(total, axis)
  return total.astype(x.dtype).reshape(x.shape)
