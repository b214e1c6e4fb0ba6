"""Grouped-query attention, of packed rows by an exchangeable implementation or with a cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from egad_jax.models import rotary
from egad_jax.models.config import DecoderConfig, LayerKind
from egad_jax.models.dense import project
from egad_jax.models.norm import RMSNorm

KeysValues = tuple[jax.Array, jax.Array]
# Constrains an activation's sharding on the device mesh by its axes' logical names; None leaves an
# axis open.
Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]
# Finite, because a query that sees no key, as padding in a cache, must not give NaN.
_MASKED = -1e30


def packed_mask(
  positions: jax.Array, segment_ids: jax.Array, *, window: int | None = None
) -> jax.Array:
  """Which keys a query may see in packed rows: itself and earlier tokens of its own segment.

  Args:
    positions: int32 `[batch, seq]`, counted within each segment.
    segment_ids: int32 `[batch, seq]`; padding is a segment of its own (0).
    window: number of tokens that a token sees, itself included; None for no limit.

  Returns:
    bool `[batch, 1, seq, seq]` (query, key). Each token sees itself, so every query has a key.
  """
  order = jnp.arange(segment_ids.shape[1])
  causal = (order[:, None] >= order[None, :])[None]
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return (causal & same & _in_window(positions, positions, window))[:, None]


def cached_mask(
  positions: jax.Array, key_positions: jax.Array, *, window: int | None = None
) -> jax.Array:
  """Which cached keys a query may see: those with a position from 0 up to its own.

  Args:
    positions: int32 `[batch, seq]`, positions of the queries.
    key_positions: int32 `[batch, max_len]`, negative where the cache holds nothing.
    window: number of tokens that a token sees, itself included; None for no limit.

  Returns:
    bool `[batch, 1, seq, max_len]` (query, key).
  """
  keys = key_positions[:, None, :]
  seen = (keys >= 0) & (keys <= positions[:, :, None])
  return (seen & _in_window(positions, key_positions, window))[:, None]


def _in_window(queries: jax.Array, keys: jax.Array, window: int | None) -> jax.Array:
  if window is None:
    return jnp.ones((1, 1, 1), bool)
  return queries[:, :, None] - keys[:, None, :] < window


class AttentionLogits(NamedTuple):
  """What happens to the products of queries and keys before the softmax.

  Attributes:
    window: number of tokens that a token sees, itself included; None for no limit.
    scale: factor of the products; None for head_dim ** -0.5.
    soft_cap: c of c·tanh(logits / c), applied before the mask; None for no cap.
  """

  window: int | None = None
  scale: float | None = None
  soft_cap: float | None = None


PLAIN_LOGITS = AttentionLogits()


@dataclasses.dataclass(frozen=True)
class PackedAttention:
  """An implementation of attention in packed rows; all give the same values, up to rounding.

  Attributes:
    name: name of the implementation, such as "xla".
    prepare: `(positions, segment_ids, window) -> seen`: from int32 `[batch, seq]` arrays, the mask
      or segment ids that `attend` reads in all layers with that window.
    attend: `(query, key, value, seen, logits) -> out`, all `[batch, seq, heads, head_dim]`, where
      keys and values may have fewer, shared heads, and `logits` are `AttentionLogits`; `out` has
      the dtype of the query. The softmax is float32 whatever the dtype.
  """

  name: str
  prepare: Callable[[jax.Array, jax.Array, int | None], Any]
  attend: Callable[[jax.Array, jax.Array, jax.Array, Any, AttentionLogits], jax.Array]


def masked_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array,
  logits: AttentionLogits = PLAIN_LOGITS,
) -> jax.Array:
  """Attention that XLA compiles; it keeps all logits, float32 `[batch, num_heads, seq, keys]`.

  Args:
    query: `[batch, seq, num_heads, head_dim]`, in the compute dtype.
    key: `[batch, keys, num_kv_heads, head_dim]`.
    value: `[batch, keys, num_kv_heads, head_dim]`.
    mask: bool `[batch, 1, seq, keys]`, True where the query sees the key.
    logits: the scale and the soft cap; the mask includes the window.

  Returns:
    `[batch, seq, num_heads, head_dim]` in the dtype of the query.
  """
  if logits.soft_cap is None:
    # This form takes the softmax in float32 whatever the compute dtype.
    return jax.nn.dot_product_attention(
      query, key, value, mask=mask, scale=logits.scale, implementation="xla"
    )
  # JAX's own function has no soft cap.
  batch, seq, num_heads, head_dim = query.shape
  grouped = query.reshape(batch, seq, key.shape[2], -1, head_dim)
  scale = head_dim**-0.5 if logits.scale is None else logits.scale
  products = jnp.einsum("bqhgd,bkhd->bhgqk", grouped, key, preferred_element_type=jnp.float32)
  capped = logits.soft_cap * jnp.tanh(products * (scale / logits.soft_cap))
  weights = jax.nn.softmax(jnp.where(mask[:, :, None], capped, _MASKED), axis=-1)
  out = jnp.einsum("bhgqk,bkhd->bqhgd", weights.astype(value.dtype), value)
  return out.reshape(batch, seq, num_heads, head_dim)


# Works on every device, and XLA itself partitions it over a mesh.
XLA = PackedAttention(
  "xla",
  lambda positions, segment_ids, window: packed_mask(positions, segment_ids, window=window),
  masked_attention,
)


class Attention(nn.Module):
  """Attention of one layer, without its norm and residual.

  Attributes:
    config: the architecture.
    kind: the window and the rotation of this layer.
    dtype: the compute dtype.
    params_dtype: dtype of the parameters.
    constrain: constrains the sharding of activations.
    packed: implementation for packed rows.
  """

  config: DecoderConfig
  kind: LayerKind
  dtype: jnp.dtype
  params_dtype: jnp.dtype
  constrain: Constrain
  packed: PackedAttention

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    cos_sin: tuple[jax.Array, jax.Array],
    seen: Any,
    cache: KeysValues | None = None,
    cache_length: jax.Array | None = None,
  ) -> tuple[jax.Array, KeysValues | None]:
    """Attends within packed rows, or to a cache and the new tokens.

    Args:
      x: `[batch, seq, dim]` in the compute dtype.
      cos_sin: cosines and sines from `rotary.rotations`.
      seen: `cached_mask` if there is a cache, else the result of `packed.prepare`.
      cache: keys and values `[batch, max_len, num_kv_heads, head_dim]`; None for packed rows.
      cache_length: scalar int32, the first free index of the cache; None for packed rows.

    Returns:
      The output `[batch, seq, dim]`, and the cache extended by this call's keys and values or None.
    """
    c = self.config
    query = self._project("query", x, c.num_heads, "heads")
    key = self._project("key", x, c.num_kv_heads, "kv_heads")
    value = self._project("value", x, c.num_kv_heads, "kv_heads")
    if c.qk_norm:
      query = self._norm("query_norm", "heads")(query)
      key = self._norm("key_norm", "kv_heads")(key)
    if self.kind.rope:
      query, key = rotary.rotate(query, cos_sin), rotary.rotate(key, cos_sin)
    logits = AttentionLogits(self.kind.window, c.query_scale, c.attention_soft_cap)
    if cache is None:
      return self._combine(self.packed.attend(query, key, value, seen, logits)), None
    key, value = (
      lax.dynamic_update_slice_in_dim(old, new, cache_length, axis=1)
      for old, new in zip(cache, (key, value), strict=True)
    )
    return self._combine(masked_attention(query, key, value, seen, logits)), (key, value)

  def _norm(self, name: str, heads: str) -> RMSNorm:
    c = self.config
    axes = (heads, "head_dim") if c.qk_norm_over_heads else ("head_dim",)
    return RMSNorm(c.norm_eps, self.params_dtype, axes, c.norm_offset, name=name)

  def _project(self, name: str, x: jax.Array, heads: int, axis: str) -> jax.Array:
    init = nn.initializers.variance_scaling(
      1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)
    )
    kernel = self.param(
      name,
      nn.with_logical_partitioning(init, ("embed", axis, "head_dim")),
      (self.config.dim, heads, self.config.head_dim),
      self.params_dtype,
    )
    y = project(x, kernel.astype(self.dtype))
    if self.config.qkv_bias:
      y = self._with_bias(name, y, (axis, "head_dim"))
    return self.constrain(y, ("batch", "seq", axis, None))

  def _with_bias(self, name: str, y: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    init = nn.with_logical_partitioning(nn.initializers.zeros_init(), axes)
    bias = self.param(f"{name}_bias", init, y.shape[2:], self.params_dtype)
    return y + bias.astype(self.dtype)[None, None]

  def _combine(self, x: jax.Array) -> jax.Array:
    c = self.config
    init = nn.initializers.variance_scaling(
      # Small, so that the residual stream does not grow with depth.
      1.0 / (2 * c.num_layers),
      "fan_in",
      "truncated_normal",
      in_axis=(0, 1),
      out_axis=2,
    )
    kernel = self.param(
      "output",
      nn.with_logical_partitioning(init, ("heads", "head_dim", "embed")),
      (c.num_heads, c.head_dim, c.dim),
      self.params_dtype,
    )
    y = project(x, kernel.astype(self.dtype), inputs=2)
    return self._with_bias("output", y, ("embed",)) if c.attention_bias else y
