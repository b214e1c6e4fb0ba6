"""Attention in packed rows by cuDNN's flash attention, through `jax.nn.dot_product_attention`.

cuDNN has no segment ids, but two of its inputs can express packed rows. JAX's packed layout
(offsets and lengths of segments) is not public, needs a Hopper GPU and a fixed bound on the
segments of a row, and leaves tokens outside every segment undefined. The boolean mask is public;
JAX adds it to the logits as 0 or about -2e12 in bfloat16. Every token sees itself, so the largest
logit of a row is an ordinary one, and in cuDNN's float32 softmax each masked pair gets a weight of
exactly 0. So the mask is used, together with cuDNN's own causal mask, which skips blocks above the
diagonal. It takes `[batch, 1, seq, seq]` in bfloat16, and its unused gradient as much in the
backward pass; XLA's form takes as many float32 values for every attention head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from egad_jax.models.attention import AttentionLogits, PackedAttention, packed_mask
from egad_jax.models.per_device import per_device

_AMPERE, _HOPPER = (8, 0), (9, 0)


def unserved(
  *,
  seq_len: int,
  head_dim: int,
  soft_cap: float | None,
  dtype: jnp.dtype,
  capability: tuple[int, ...] | None,
) -> str | None:
  """Why cuDNN cannot take such arrays; None if it can.

  Args:
    seq_len: number of tokens of a row.
    head_dim: width of an attention head.
    soft_cap: soft cap of attention's logits; None for none.
    dtype: the compute dtype.
    capability: the GPU's compute capability, such as (9, 0); None for other devices.
  """
  if capability is None or capability < _AMPERE:
    return "it needs an NVIDIA GPU of compute capability 8.0 or above"
  if jnp.dtype(dtype) != jnp.bfloat16:
    return f"the dtype must be bfloat16, and it is {jnp.dtype(dtype).name}"
  if soft_cap is not None:
    return f"it has no soft cap of attention's logits, and the model has one of {soft_cap:g}"
  largest = 256 if capability >= _HOPPER else 128
  if head_dim % 8 or head_dim > largest:
    return f"head_dim must be a multiple of 8 and at most {largest}, and it is {head_dim}"
  if seq_len % 2:
    return f"rows must have an even number of tokens, and they have {seq_len}"
  return None


def cudnn_attention(mesh: jax.sharding.Mesh | None = None) -> PackedAttention:
  """Makes the attention; its `attend` reads the bool `[batch, 1, seq, seq]` of `packed_mask`.

  Where there is no cuDNN, or it cannot take the arrays, `attend` raises JAX's RuntimeError or
  NotImplementedError.

  Args:
    mesh: the mesh over which the caller's arrays are sharded; None for one device.
  """

  def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    logits: AttentionLogits,
  ) -> jax.Array:
    if logits.soft_cap is not None:
      raise NotImplementedError("cuDNN's attention has no soft cap.")
    # The mask includes the window.
    kernel = functools.partial(_attend, scale=logits.scale)
    return per_device(mesh, kernel, ("batch", None, "seq", None))(query, key, value, mask)

  return PackedAttention(
    "cudnn",
    lambda positions, segment_ids, window: packed_mask(positions, segment_ids, window=window),
    attend,
  )


def _attend(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, *, scale: float | None
) -> jax.Array:
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask, is_causal=True, scale=scale, implementation="cudnn"
  )
