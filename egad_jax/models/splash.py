"""Attention of packed rows by the TPU kernel that ships with jax, splash attention.

Logits exist one block at a time, and blocks above the diagonal or outside a window are skipped, so
that memory is linear in the length of the rows. Masks come from places in the row and segment ids:
a segment is contiguous, so that a window counted in places is one counted in positions (but for
padding, whose positions may be all the same).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from egad_jax.models.attention import PackedAttention
from egad_jax.models.per_device import per_device

# Blocks are whole vectors of the TPU.
LANES = 128
# Not the fastest on every chip, but its float32 logits and their gradients stay far below the
# memory that a kernel may use by default.
_LARGEST_BLOCK = 512
# The widest that was compiled with blocks of that size, for v5e and v6e.
_LARGEST_HEAD_DIM = 512


def unserved(*, seq_len: int, head_dim: int) -> str | None:
  """Why the kernel cannot take rows of this length or heads of this size; None if it can."""
  if seq_len % LANES:
    return f"rows must be a multiple of {LANES} tokens long, and they have {seq_len}"
  if head_dim % 8 or head_dim > _LARGEST_HEAD_DIM:
    return f"head_dim must be a multiple of 8 and at most {_LARGEST_HEAD_DIM}, and it is {head_dim}"
  return None


def splash_attention(
  mesh: jax.sharding.Mesh | None = None, *, interpret: bool = False
) -> PackedAttention:
  """Makes the attention; `attend` reads int32 `[batch, seq]` segment ids.

  Args:
    mesh: the mesh that the caller's arrays live on; None: one device.
    interpret: run the kernel's program step by step on any device, slowly, for tests.

  Raises:
    ValueError: by `attend`, if the kernel cannot take the arrays, see `unserved`.
  """

  def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    window: int | None,
  ) -> jax.Array:
    if reason := unserved(seq_len=query.shape[1], head_dim=query.shape[3]):
      raise ValueError(f"splash attention: {reason}.")
    kernel = functools.partial(_attend, window=window, interpret=interpret)
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
  window: int | None,
  interpret: bool,
) -> jax.Array:
  _, seq_len, num_heads, head_dim = query.shape
  square = (seq_len, seq_len)
  mask = (
    masks.CausalMask(square)
    if window is None
    # A token sees itself and window - 1 before it; the kernel counts only those before.
    else masks.LocalMask(square, (window - 1, 0), offset=0)
  )
  size = _block(seq_len)
  # Made anew in every trace: it holds arrays of the trace.
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
    interpret=interpret,
  )
  # The kernel does not scale. Exact where the scale is a power of two (heads of 64 or 256), else
  # one rounding more than XLA's form, which scales the logits.
  query = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)

  def of_row(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
    return kernel(q, k, v, segment_ids=kernels.SegmentIds(ids, ids))

  queries, keys, values = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
  return jnp.swapaxes(jax.vmap(of_row)(queries, keys, values, segment_ids), 1, 2)
