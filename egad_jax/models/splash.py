"""Attention in packed rows by splash attention, the TPU kernel that ships with JAX.

Logits exist one block at a time, so memory is linear in the length of the rows; blocks above the
diagonal or outside a window are skipped. Masks use indices in the row and segment ids: a segment is
contiguous, so a window counted in indices is one counted in positions (except in padding, whose
positions may all be the same).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from egad_jax.models.attention import AttentionLogits, PackedAttention
from egad_jax.models.per_device import per_device

# Lanes of a TPU vector; the sizes of blocks are multiples of it.
LANES = 128
# Not the fastest size on every chip, but a block's float32 logits and their gradients stay far
# below the memory that a kernel may use by default.
_LARGEST_BLOCK = 512
# The largest width of an attention head that was compiled with such blocks, for v5e and v6e.
_LARGEST_HEAD_DIM = 512


def unserved(*, seq_len: int, head_dim: int) -> str | None:
  """Why the kernel cannot take such arrays; None if it can.

  Args:
    seq_len: number of tokens of a row.
    head_dim: width of an attention head.
  """
  if seq_len % LANES:
    return f"rows must be a multiple of {LANES} tokens long, and they have {seq_len}"
  if head_dim % 8 or head_dim > _LARGEST_HEAD_DIM:
    return f"head_dim must be a multiple of 8 and at most {_LARGEST_HEAD_DIM}, and it is {head_dim}"
  return None


def splash_attention(
  mesh: jax.sharding.Mesh | None = None, *, interpret: bool = False
) -> PackedAttention:
  """Makes the attention; its `attend` reads int32 `[batch, seq]` segment ids.

  `attend` raises ValueError if the kernel cannot take the arrays; see `unserved`.

  Args:
    mesh: the mesh over which the caller's arrays are sharded; None for one device.
    interpret: whether to interpret the kernel, slowly and on any device, for tests.
  """

  def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    logits: AttentionLogits,
  ) -> jax.Array:
    if reason := unserved(seq_len=query.shape[1], head_dim=query.shape[3]):
      raise ValueError(f"splash attention: {reason}.")
    kernel = functools.partial(_attend, logits=logits, interpret=interpret)
    return per_device(mesh, kernel, ("batch", "seq"))(query, key, value, segment_ids)

  return PackedAttention("splash", lambda positions, segment_ids, window: segment_ids, attend)


def _block(seq_len: int) -> int:
  """The largest allowed multiple of `LANES` that divides the row."""
  sizes = range(LANES, min(seq_len, _LARGEST_BLOCK) + 1, LANES)
  return max(size for size in sizes if seq_len % size == 0)


def _attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array,
  *,
  logits: AttentionLogits,
  interpret: bool,
) -> jax.Array:
  _, seq_len, num_heads, head_dim = query.shape
  square = (seq_len, seq_len)
  mask = (
    masks.CausalMask(square)
    if logits.window is None
    # A token sees itself and window - 1 tokens before it; the kernel counts only the latter.
    else masks.LocalMask(square, (logits.window - 1, 0), offset=0)
  )
  size = _block(seq_len)
  # The kernel is made in every trace because it holds arrays of the trace.
  kernel = kernels.make_splash_mha(
    masks.MultiHeadMask([mask] * num_heads),
    block_sizes=kernels.BlockSizes(
      block_q=size,
      block_kv=size,
      block_q_dkv=size,
      block_kv_dkv=size,
      block_q_dq=size,
      block_kv_dq=size,
    ),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=logits.soft_cap,
    interpret=interpret,
  )
  # The kernel does not scale the logits, so the query is scaled. This is exact if the scale is a
  # power of two (head_dim 64 or 256), else one rounding more than in XLA's form.
  scale = head_dim**-0.5 if logits.scale is None else logits.scale
  query = (query.astype(jnp.float32) * scale).astype(query.dtype)

  def of_row(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    return kernel(q, k, v, segment_ids=kernels.SegmentIds(ids, ids))

  queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  return jnp.swapaxes(jax.vmap(of_row)(queries, keys, values, segment_ids), 1, 2)
