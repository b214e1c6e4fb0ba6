"""The decoder as one Linen module, scanned over its layers.

Hugging Face numbering of taps: 0 is the embeddings, i the output of layer i (counted from 1), and
`num_layers` the output of the final norm.
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
    layers: one (keys, values) pair for each kind of the pattern, each
      `[repeats, batch, max_len, num_kv_heads, head_dim]` in the compute dtype.
    positions: int32 `[batch, max_len]`, negative where nothing valid is held.
    length: scalar int32, the first free place.
  """

  layers: tuple[KeysValues, ...]
  positions: jax.Array
  length: jax.Array


class Shared(NamedTuple):
  """What all layers read: the same arrays in every turn of the scan."""

  cos_sin: tuple[jax.Array, jax.Array]
  seen: tuple[Any, ...]
  cache_length: jax.Array | None


def _on_device(params: Any) -> Any:
  return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), params)


class MLP(nn.Module):
  """down(silu(gate(x)) · up(x))."""

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
    # Shrunk so that the residual stream does not grow with depth.
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
    """Maps `x` `[batch, seq, dim]` to the same shape; see `Attention` for the rest."""
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
  """One turn of the layer scan: each kind of the pattern once."""

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
      carry: the residual stream `[batch, seq, dim]` and the tap buffer, or None.
      slots: int32 `[len(pattern)]`, where in the buffer each layer's output goes, or None.
      caches: this repetition's part of `Cache.layers`, or None.
      shared: see `Shared`.
    """
    x, buffer = carry
    block = Block
    if self.remat != "none":
      # Inside a scan nothing can be merged across the checkpoint, so the barrier is only a cost.
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
  """Tokens to hidden states; the unembedding is applied by the head."""

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
      tokens: int32 `[batch, seq]`.
      positions: int32 `[batch, seq]`; negative marks padding when there is a cache.
      segment_ids: int32 `[batch, seq]`; not read when there is a cache.
      cache: what was read before, or None.
      taps: which hidden states to return too; not with a cache.

    Returns:
      Hidden states after the final norm `[batch, seq, dim]`, taps `[len(taps), batch, seq, dim]`,
      both in the compute dtype, and the extended cache.
    """
    c = self.config
    embedding = self._table("embedding")
    # Devices that hold parts of the table's columns look up each other's rows, and then exchange
    # them. Told only the end of that, compilers gather the whole batch on every device.
    ids = self.constrain(tokens, ("batch_copies", "seq"))
    if cache is None:
      # Columns of all ids are fewer bytes than those of all tokens of a batch.
      embedding = self.constrain(embedding, ("vocab_whole", "embed"))
    # "fill" answers NaN for an id outside the table; the default would clamp it silently.
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
    # The embeddings and the last state are at hand outside the scan. A buffer in its carry costs
    # TPUs vector memory in all layers (docs/performance.md), so it is there for inner taps only.
    if inner:
      slots = _tap_slots(c, inner)
      # One place more than there are taps: layers that nobody asked for are written there.
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
    # Inside the scan parameters are those of one turn, so that no more than those are copied ahead.
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
  """Those of the taps that are layers inside the scan."""
  if len(set(taps)) != len(taps) or not all(0 <= tap <= config.num_layers for tap in taps):
    raise ValueError(f"taps must be distinct, from 0 to {config.num_layers}; got {tuple(taps)}.")
  return [tap for tap in taps if 0 < tap < config.num_layers]


def _tap_slots(config: DecoderConfig, inner: Sequence[int]) -> np.ndarray:
  """Where each layer's output goes in the tap buffer, int32 `[repeats, len(pattern)]`."""
  slots = np.full(config.num_layers, len(inner), np.int32)
  slots[np.array(inner) - 1] = np.arange(len(inner))
  return slots.reshape(config.repeats, len(config.pattern))
