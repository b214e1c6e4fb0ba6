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
from egad_jax.models.mlp import MLP, ExpertMLPs
from egad_jax.models.norm import residual_norm

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
    tail: the same for the layers after the whole repetitions, with 1 in place of `repeats`.
    positions: int32 `[batch, max_len]`, position of each token; negative for padding or no token.
    length: scalar int32, entries in use in each row, padding included: the first free index.
  """

  layers: tuple[KeysValues, ...]
  tail: tuple[KeysValues, ...]
  positions: jax.Array
  length: jax.Array


class Shared(NamedTuple):
  """The arrays that all layers read, the same in every iteration of the scan.

  Attributes:
    cos_sin: cosines and sines for each layer of the pattern, from `rotary.rotations`; None where a
      layer does not rotate.
    seen: mask or segment ids for each layer of the pattern, as `Attention` reads them.
    cache_length: scalar int32, the first free index of the cache; None without a cache.
  """

  cos_sin: tuple[tuple[jax.Array, jax.Array] | None, ...]
  seen: tuple[Any, ...]
  cache_length: jax.Array | None


def _on_device(params: Any) -> Any:
  return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), params)


class Block(nn.Module):
  """One layer: attention and MLP, each with its norms and added to the residual stream."""

  config: DecoderConfig
  kind: LayerKind
  dtype: jnp.dtype
  params_dtype: jnp.dtype
  constrain: Constrain
  packed: PackedAttention
  mesh: jax.sharding.Mesh | None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    cos_sin: tuple[jax.Array, jax.Array] | None,
    seen: Any,
    cache: KeysValues | None,
    cache_length: jax.Array | None,
  ) -> tuple[jax.Array, KeysValues | None]:
    """Maps `x` `[batch, seq, dim]` to the same shape; the other arguments are `Attention`'s."""
    c = self.config
    common = (self.dtype, self.params_dtype, self.constrain)
    attended, cache = Attention(c, self.kind, *common, self.packed, name="attention")(
      self._norm("attention_norm", x, c.pre_norms), cos_sin, seen, cache, cache_length
    )
    attended = self._norm("attention_post_norm", attended, c.post_norms)
    x = self.constrain(x + self._scaled(attended), ("batch", "seq", None))
    if c.experts is None:
      mlp: nn.Module = MLP(c, *common, name="mlp")
    else:
      mlp = ExpertMLPs(c, self.dtype, self.params_dtype, self.mesh, name="mlp")
    changed = mlp(self._norm("mlp_norm", x, c.pre_norms))
    x = x + self._scaled(self._norm("mlp_post_norm", changed, c.post_norms))
    return self.constrain(x, ("batch", "seq", None)), cache

  def _norm(self, name: str, x: jax.Array, present: bool) -> jax.Array:
    return residual_norm(self.config, self.params_dtype, name)(x) if present else x

  def _scaled(self, x: jax.Array) -> jax.Array:
    multiplier = self.config.residual_multiplier
    return x if multiplier is None else x * multiplier


class Repeat(nn.Module):
  """One iteration of the layer scan: the layers of one repetition of the pattern, or its tail."""

  config: DecoderConfig
  pattern: tuple[LayerKind, ...]
  dtype: jnp.dtype
  params_dtype: jnp.dtype
  constrain: Constrain
  remat: str
  packed: PackedAttention
  mesh: jax.sharding.Mesh | None

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
      caches: this repetition's part of `Cache.layers` or `Cache.tail`; None without a cache.
      shared: the arrays that all layers read.

    Returns:
      The new carry, and the extended caches or None.
    """
    x, buffer = carry
    block = Block
    if self.remat != "none":
      # Inside a scan CSE cannot undo the rematerialisation, so its barrier would only cost time.
      block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
    common = (self.dtype, self.params_dtype, self.constrain, self.packed, self.mesh)
    written = []
    for i, kind in enumerate(self.pattern):
      layer = block(self.config, kind, *common, name=f"block_{i}")
      cache = None if caches is None else caches[i]
      x, cache = layer(x, shared.cos_sin[i], shared.seen[i], cache, shared.cache_length)
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
    mesh: the mesh over which a mixture of experts is sharded; None for one device.
    layers_on_host: whether layers' parameters may be in host memory, to be copied when needed.
  """

  config: DecoderConfig
  dtype: jnp.dtype = jnp.float32
  params_dtype: jnp.dtype = jnp.float32
  constrain: Constrain = nn.with_logical_constraint
  remat: str = "none"
  packed: PackedAttention = XLA
  mesh: jax.sharding.Mesh | None = None
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
    embedding = self._table("embedding", (c.vocab_size, c.dim), ("vocab", "embed"))
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
    if c.embedding_scale is not None:
      x = x * c.embedding_scale
    if c.learned_positions:
      x = x + self._position_rows(positions)
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
    (x, buffer), layers = self._scan("layers")(
      (x, buffer),
      None if slots is None else slots[: c.repeats * len(c.pattern)].reshape(c.repeats, -1),
      None if cache is None else cache.layers,
      shared,
    )
    tail = None if cache is None else cache.tail
    if c.tail:
      last = None if slots is None else slots[None, -len(c.tail) :]
      (x, buffer), tail = self._scan("tail")((x, buffer), last, tail, shared)
    hidden = residual_norm(c, self.params_dtype, "final_norm")(x)
    if not c.tie_embeddings:
      self._table("unembedding", (c.vocab_size, c.dim), ("vocab", "embed"))
    if cache is not None:
      cache = Cache(layers, tail, cache.positions, cache.length + tokens.shape[1])
    states = {0: embedded, c.num_layers: hidden}
    if buffer is not None:
      states |= dict(zip(inner, buffer, strict=False))
    tapped = [states[tap] for tap in taps]
    none = jnp.zeros((0, *hidden.shape), hidden.dtype)
    if c.logit_divisor is not None:
      # The head multiplies with the unembedding only, so the division is done here; the tap of the
      # last state is as before it.
      hidden = hidden / c.logit_divisor
    return hidden, jnp.stack(tapped) if tapped else none, cache

  def _table(
    self, name: str, shape: tuple[int, int], axes: tuple[str | None, str | None]
  ) -> jax.Array:
    init = nn.initializers.normal(self.config.embedding_std)
    return self.param(name, nn.with_logical_partitioning(init, axes), shape, self.params_dtype)

  def _position_rows(self, positions: jax.Array) -> jax.Array:
    c = self.config
    table = self._table("positions", (c.max_seq_len, c.dim), (None, "embed"))
    # Padding in a cache has negative positions; a position beyond the table gives NaN.
    rows = jnp.take(table, jnp.maximum(positions, 0), axis=0, mode="fill").astype(self.dtype)
    return self.constrain(rows, ("batch", "seq", None))

  def _shared(
    self, positions: jax.Array, segment_ids: jax.Array | None, cache: Cache | None
  ) -> Shared:
    c = self.config
    by_window = {}
    for window in {kind.window for kind in c.pattern}:
      if cache is None:
        by_window[window] = self.packed.prepare(positions, segment_ids, window)
      else:
        by_window[window] = cached_mask(positions, cache.positions, window=window)
    turns: dict[float | None, tuple[jax.Array, jax.Array]] = {}
    for theta in dict.fromkeys(kind.rope_theta for kind in c.pattern if kind.rope):
      own = {"theta": c.rope_theta, "scaling": c.rope_scaling} if theta is None else None
      freqs = rotary.frequencies(c.head_dim, **(own or {"theta": theta}))
      turns[theta] = rotary.rotations(positions, freqs)
    return Shared(
      cos_sin=tuple(turns[kind.rope_theta] if kind.rope else None for kind in c.pattern),
      seen=tuple(by_window[kind.window] for kind in c.pattern),
      cache_length=None if cache is None else cache.length,
    )

  def _scan(self, name: str) -> nn.Module:
    """The scan over whole repetitions, "layers", or over the one partial repetition, "tail"."""
    c = self.config
    pattern, length = (c.pattern, c.repeats) if name == "layers" else (c.tail, 1)
    # Mapped inside the scan, where the parameters are those of one iteration, so that only as many
    # are copied at a time.
    repeat = nn.map_variables(Repeat, "params", _on_device) if self.layers_on_host else Repeat
    scanned = nn.scan(
      repeat,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(0, 0, nn.broadcast),
      length=length,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    common = (self.dtype, self.params_dtype, self.constrain)
    return scanned(c, pattern, *common, self.remat, self.packed, self.mesh, name=name)


def _inner_taps(config: DecoderConfig, taps: Sequence[int]) -> list[int]:
  """The taps that are outputs of layers inside the scan.

  Raises:
    ValueError: taps are repeated or out of range.
  """
  if len(set(taps)) != len(taps) or not all(0 <= tap <= config.num_layers for tap in taps):
    raise ValueError(f"taps must be distinct, from 0 to {config.num_layers}; got {tuple(taps)}.")
  return [tap for tap in taps if 0 < tap < config.num_layers]


def _tap_slots(config: DecoderConfig, inner: Sequence[int]) -> np.ndarray:
  """Index in the tap buffer for each layer's output, int32 `[num_layers]`."""
  slots = np.full(config.num_layers, len(inner), np.int32)
  slots[np.array(inner) - 1] = np.arange(len(inner))
  return slots
