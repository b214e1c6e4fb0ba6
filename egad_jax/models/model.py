"""The interface of a model to everything else: a tuple of pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from egad_jax.models.attention import XLA, Constrain, PackedAttention
from egad_jax.models.config import DecoderConfig
from egad_jax.models.decoder import REMAT_POLICIES, Cache, Decoder
from egad_jax.types import Params


class Model(NamedTuple):
  """A decoder as pure functions; anything with these fields can be teacher or student.

  Attributes:
    config: the architecture.
    init: `(key) -> params`, a plain nested dict; works under `jax.eval_shape` and `jax.jit`.
    logical_axes: `() -> tree` with the structure of params, whose leaves are tuples of a logical
      name or None for each axis.
    apply: `(params, tokens, positions, segment_ids, *, taps=()) -> (hidden, taps)`, from int32
      `[batch, seq]` packed rows to hidden states `[batch, seq, dim]` after the final norm and taps
      `[len(taps), batch, seq, dim]`, both in the compute dtype.
    decode: `(params, tokens, positions, cache) -> (hidden, cache)` for int32 `[batch, seq]` new
      tokens; a negative position marks padding.
    init_cache: `(batch, max_len) -> cache`, an empty cache of `max_len` tokens for each row.
    unembedding: `(params) -> [vocab, dim]`, the parameter itself, not in the compute dtype.
  """

  config: DecoderConfig
  init: Callable[[jax.Array], Params]
  logical_axes: Callable[[], Params]
  apply: Callable[..., tuple[jax.Array, jax.Array]]
  decode: Callable[[Params, jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]
  init_cache: Callable[[int, int], Cache]
  unembedding: Callable[[Params], jax.Array]

  def num_parameters(self) -> int:
    """The number of values in all parameters, from their shapes alone."""
    shapes = jax.eval_shape(self.init, jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def make_model(
  config: DecoderConfig,
  *,
  dtype: Any = jnp.float32,
  remat: str = "none",
  params_dtype: Any = jnp.float32,
  constrain: Constrain = nn.with_logical_constraint,
  attention: PackedAttention = XLA,
  mesh: jax.sharding.Mesh | None = None,
  layers_on_host: bool = False,
) -> Model:
  """Makes the functions of a decoder.

  Args:
    config: the architecture.
    dtype: the compute dtype of the layers; norms and softmax are always float32.
    remat: what is stored of each layer for the backward pass: "none" (no rematerialisation, all is
      stored), "dots" (only results of matrix products with parameters) or "full" (only the layer's
      input).
    params_dtype: dtype of the parameters that `init` makes.
    constrain: constrains an activation's sharding by the logical names of its axes; the default,
      Flax's own, does nothing unless its rules are set.
    attention: implementation of attention in `apply`; `decode` always uses `masked_attention`.
    mesh: the mesh over which the arrays are sharded, for a mixture of experts; None for one device.
    layers_on_host: whether parameters of layers may be in host memory; each layer's are copied to
      the devices when it runs.

  Raises:
    ValueError: `remat` is unknown.
  """
  if remat not in REMAT_POLICIES:
    raise ValueError(f'remat must be one of {", ".join(REMAT_POLICIES)}; got "{remat}".')
  dtypes = jnp.dtype(dtype), jnp.dtype(params_dtype)
  decoder = Decoder(config, *dtypes, constrain, remat, attention, mesh, layers_on_host)

  def boxed_init(key: jax.Array) -> Params:
    ids = jnp.zeros((1, 1), jnp.int32)
    # Parameters do not depend on the attention, whose kernels cannot take rows of one token.
    plain = decoder.clone(packed=XLA, mesh=None, layers_on_host=False)
    return plain.init(key, ids, ids, ids)["params"]

  def init(key: jax.Array) -> Params:
    return nn.meta.unbox(boxed_init(key))

  def logical_axes() -> Params:
    specs = nn.get_partition_spec(jax.eval_shape(boxed_init, jax.random.key(0)))
    return jax.tree.map(tuple, specs, is_leaf=lambda s: isinstance(s, jax.sharding.PartitionSpec))

  def apply(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    taps: tuple[int, ...] = (),
  ) -> tuple[jax.Array, jax.Array]:
    variables = {"params": params}
    hidden, tapped, _ = decoder.apply(variables, tokens, positions, segment_ids, taps=tuple(taps))
    return hidden, tapped

  def decode(
    params: Params, tokens: jax.Array, positions: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    hidden, _, cache = decoder.apply({"params": params}, tokens, positions, None, cache)
    return hidden, cache

  def init_cache(batch: int, max_len: int) -> Cache:
    shape = (batch, max_len, config.num_kv_heads, config.head_dim)
    empty = lambda repeats: jnp.zeros((repeats, *shape), dtype)
    return Cache(
      layers=tuple((empty(config.repeats), empty(config.repeats)) for _ in config.pattern),
      tail=tuple((empty(1), empty(1)) for _ in config.tail),
      positions=jnp.full((batch, max_len), -1, jnp.int32),
      length=jnp.int32(0),
    )

  def unembedding(params: Params) -> jax.Array:
    return params["embedding" if config.tie_embeddings else "unembedding"]

  return Model(config, init, logical_axes, apply, decode, init_cache, unembedding)
