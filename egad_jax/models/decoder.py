"""The decoder as one Linen module, scanned over its layers.

Taps are hidden states by Hugging Face's numbering: 0 is the embeddings, i the output of layer i
(counted from 1), and `num_layers` the output of the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from egad_jax.models import rotary
from egad_jax.models.attention import (
  XLA,
  Attention,
  Constrain,
  KeysValues,
  PackedAttention,
  cached_mask,
)
from egad_jax.models.config import DecoderConfig, LayerKind
from egad_jax.models.dense import project
from egad_jax.models.norm import RMSNorm

REMAT_POLICIES = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
  """Keys and values of the tokens read so far.

  Attributes:
    layers: one (keys, values) pair for each layer of the pattern, each
      `[repeats, batch, max_len, num_kv_heads, head_dim]` in the compute dtype.
    positions: int32 `[batch, max_len]`, position of each token; negative for padding or no token.
    length: scalar int32, entries in use in each row, padding included: the first free index.
  """

  layers: tuple[KeysValues, ...]
  positions: jax.Array
  length: jax.Array


class Shared(NamedTuple):
  """The arrays that all layers read, the same in every iteration of the scan.

  Attributes:
    cos_sin: cosines and sines, from `rotary.rotations`.
    seen: mask or segment ids for each layer of the pattern, as `Attention` reads them.
    cache_length: scalar int32, the first free index of the cache; None without a cache.
  """

  cos_sin: tuple[jax.Array, jax.Array]
  seen: tuple[Any, ...]
  cache_length: jax.Array | None


def _on_device(params: Any) -> Any:
  return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), params)


class MLP(nn.Module):
  """The gated MLP of a layer: down(silu(gate(x)) · up(x))."""

  config: DecoderConfig
  dtype: jnp.dtype
  params_dtype: jnp.dtype
  constrain: Constrain

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` `[batch, seq, dim]` to the same shape."""
    c = self.config
    gate = project(x, self._kernel("gate", (c.dim, c.mlp_dim), ("embed", "mlp"), 1.0))
    up = project(x, self._kernel("up", (c.dim, c.mlp_dim), ("embed", "mlp"), 1.0))
    inner = self.constrain(nn.silu(gate) * up, ("batch", "seq", "mlp"))
    # Small, so that the residual stream does not grow with depth.
    scale = 1.0 / (2 * c.num_layers)
    return project(inner, self._kernel("down", (c.mlp_dim, c.dim), ("mlp", "embed"), scale))

  def _kernel(
    self, name: str, shape: tuple[int, int], axes: tuple[str, str], scale: float
  ) -> jax.Array:
    init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    init = nn.with_logical_partitioning(init, axes)
    return self.param(name, init, shape, self.params_dtype).astype(self.dtype)


class Block(nn.Module):
  """One layer: attention and MLP, each after a norm and added to the residual stream."""

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
    cache: KeysValues | None,
    cache_length: jax.Array | None,
  ) -> tuple[jax.Array, KeysValues | None]:
    """Maps `x` `[batch, seq, dim]` to the same shape; the other arguments are `Attention`'s."""
    c = self.config
    common = (self.dtype, self.params_dtype, self.constrain)
    attended, cache = Attention(c, self.kind, *common, self.packed, name="attention")(
      RMSNorm(c.norm_eps, self.params_dtype, name="attention_norm")(x),
      cos_sin,
      seen,
      cache,
      cache_length,
    )
    x = self.constrain(x + attended, ("batch", "seq", None))
    normed = RMSNorm(c.norm_eps, self.params_dtype, name="mlp_norm")(x)
    x = x + MLP(c, *common, name="mlp")(normed)
    return self.constrain(x, ("batch", "seq", None)), cache


class Repeat(nn.Module):
  """One iteration of the layer scan: the layers of one repetition of the pattern."""

  config: DecoderConfig
  dtype: jnp.dtype
  params_dtype: jnp.dtype
  constrain: Constrain
  remat: str
  packed: PackedAttention

  @nn.compact
  def __call__(
    self,
    carry: tuple[jax.Array, jax.Array | None],
    slots: jax.Array | None,
    caches: tuple[KeysValues, ...] | None,
    shared: Shared,
  ) -> tuple[tuple[jax.Array, jax.Array | None], tuple[KeysValues, ...] | None]:
    """Runs the layers of one repetition.

    Args:
      carry: the residual stream `[batch, seq, dim]` and the tap buffer
        `[inner taps + 1, batch, seq, dim]`, or None without inner taps.
      slots: int32 `[len(pattern)]`, index in the buffer for each layer's output; None without one.
      caches: this repetition's part of `Cache.layers`; None without a cache.
      shared: the arrays that all layers read.

    Returns:
      The new carry, and the extended caches or None.
    """
    x, buffer = carry
    block = Block
    if self.remat != "none":
      # Inside a scan CSE cannot undo the rematerialisation, so its barrier would only cost time.
      block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
    common = (self.dtype, self.params_dtype, self.constrain, self.packed)
    written = []
    for i, kind in enumerate(self.config.pattern):
      layer = block(self.config, kind, *common, name=f"block_{i}")
      cache = None if caches is None else caches[i]
      x, cache = layer(x, shared.cos_sin, shared.seen[i], cache, shared.cache_length)
      written.append(cache)
      if buffer is not None:
        buffer = lax.dynamic_update_index_in_dim(buffer, x, slots[i], axis=0)
    return (x, buffer), None if caches is None else tuple(written)


class Decoder(nn.Module):
  """Maps tokens to hidden states; the distillation head applies the unembedding.

  Attributes:
    config: the architecture.
    dtype: the compute dtype.
    params_dtype: dtype of the parameters.
    constrain: constrains the sharding of activations by logical axis names.
    remat: key of `REMAT_POLICIES`, what the backward pass keeps of each layer.
    packed: implementation of attention in packed rows.
    layers_on_host: whether layers' parameters may be in host memory, to be copied when needed.
  """

  config: DecoderConfig
  dtype: jnp.dtype = jnp.float32
  params_dtype: jnp.dtype = jnp.float32
  constrain: Constrain = nn.with_logical_constraint
  remat: str = "none"
  packed: PackedAttention = XLA
  layers_on_host: bool = False

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None,
    cache: Cache | None = None,
    taps: Sequence[int] = (),
  ) -> tuple[jax.Array, jax.Array, Cache | None]:
    """Runs the model on packed rows, or on the continuation of a cache.

    Args:
      tokens: int32 `[batch, seq]`, ids below `vocab_size`.
      positions: int32 `[batch, seq]`; negative for padding, if there is a cache.
      segment_ids: int32 `[batch, seq]`; unused, and may be None, if there is a cache.
      cache: keys and values of the tokens before; None for packed rows.
      taps: numbers of further hidden states to return, without a cache.

    Returns:
      Hidden states after the final norm `[batch, seq, dim]`, taps `[len(taps), batch, seq, dim]`,
      both in the compute dtype, and the extended cache or None.

    Raises:
      ValueError: taps are repeated or out of range.
    """
    c = self.config
    embedding = self._table("embedding")
    # Devices that hold parts of the table's columns look up the tokens of each other's rows, and
    # then exchange the results. Given only the final sharding, XLA would gather the whole batch on
    # every device.
    ids = self.constrain(tokens, ("batch_copies", "seq"))
    if cache is None:
      # A device's columns for all ids take fewer bytes than those for all tokens of a batch.
      embedding = self.constrain(embedding, ("vocab_whole", "embed"))
    # "fill" gives NaN for an id outside the table; "clip" would hide such an id.
    x = jnp.take(embedding, ids, axis=0, mode="fill").astype(self.dtype)
    x = self.constrain(x, ("batch_copies", "seq", "embed"))
    x = self.constrain(x, ("batch", "seq", None))
    if cache is not None:
      cache = cache._replace(
        positions=lax.dynamic_update_slice_in_dim(cache.positions, positions, cache.length, axis=1)
      )
    shared = self._shared(positions, segment_ids, cache)
    inner = _inner_taps(c, taps)
    slots, buffer = None, None
    # The embeddings and the last state are available outside the scan. A buffer in its carry costs
    # TPUs vector memory in all layers (docs/performance.md), so only inner taps have one.
    if inner:
      slots = _tap_slots(c, inner)
      # The last entry takes the outputs of all layers that are no taps.
      buffer = jnp.zeros((len(inner) + 1, *x.shape), x.dtype)
    embedded = x
    (x, buffer), layers = self._scan()(
      (x, buffer), slots, None if cache is None else cache.layers, shared
    )
    hidden = RMSNorm(c.norm_eps, self.params_dtype, name="final_norm")(x)
    if not c.tie_embeddings:
      self._table("unembedding")
    if cache is not None:
      cache = Cache(layers, cache.positions, cache.length + tokens.shape[1])
    states = {0: embedded, c.num_layers: hidden}
    if buffer is not None:
      states |= dict(zip(inner, buffer, strict=False))
    tapped = [states[tap] for tap in taps]
    none = jnp.zeros((0, *hidden.shape), hidden.dtype)
    return hidden, jnp.stack(tapped) if tapped else none, cache

  def _table(self, name: str) -> jax.Array:
    init = nn.with_logical_partitioning(
      nn.initializers.normal(self.config.embedding_std), ("vocab", "embed")
    )
    return self.param(name, init, (self.config.vocab_size, self.config.dim), self.params_dtype)

  def _shared(
    self, positions: jax.Array, segment_ids: jax.Array | None, cache: Cache | None
  ) -> Shared:
    c = self.config
    freqs = rotary.frequencies(c.head_dim, theta=c.rope_theta, scaling=c.rope_scaling)
    by_window = {}
    for window in {kind.window for kind in c.pattern}:
      if cache is None:
        by_window[window] = self.packed.prepare(positions, segment_ids, window)
      else:
        by_window[window] = cached_mask(positions, cache.positions, window=window)
    return Shared(
      cos_sin=rotary.rotations(positions, freqs),
      seen=tuple(by_window[kind.window] for kind in c.pattern),
      cache_length=None if cache is None else cache.length,
    )

  def _scan(self) -> nn.Module:
    # Mapped inside the scan, where the parameters are those of one iteration, so that only as many
    # are copied at a time.
    repeat = nn.map_variables(Repeat, "params", _on_device) if self.layers_on_host else Repeat
    scanned = nn.scan(
      repeat,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, 0, nn.broadcast),
      length=self.config.repeats,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    common = (self.dtype, self.params_dtype, self.constrain)
    return scanned(self.config, *common, self.remat, self.packed, name="layers")


def _inner_taps(config: DecoderConfig, taps: Sequence[int]) -> list[int]:
  """The taps that are outputs of layers inside the scan.

  Raises:
    ValueError: taps are repeated or out of range.
  """
  if len(set(taps)) != len(taps) or not all(0 <= tap <= config.num_layers for tap in taps):
    raise ValueError(f"taps must be distinct, from 0 to {config.num_layers}; got {tuple(taps)}.")
  return [tap for tap in taps if 0 < tap < config.num_layers]


def _tap_slots(config: DecoderConfig, inner: Sequence[int]) -> np.ndarray:
  """Index in the tap buffer for each layer's output, int32 `[repeats, len(pattern)]`."""
  slots = np.full(config.num_layers, len(inner), np.int32)
  slots[np.array(inner) - 1] = np.arange(len(inner))
  return slots.reshape(config.repeats, len(config.pattern))
