"""How the tokens of a batch are cut into chunks, the tokens whose logits exist at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Largest number of elements in a chunk's logits when no chunk size is given: 640 MiB in float32.
_CHUNK_ELEMENTS = 5 * 2**25


def default_chunk_size(num_tokens: int, vocab_size: int) -> int:
  """Returns the tokens per chunk that keep one float32 copy of its logits within 640 MiB.

  Args:
    num_tokens: number of tokens that the head is called with, masked or not.
    vocab_size: columns of the logits on one device.

  Returns:
    A power of two, so that it divides most batches and no chunk needs padding; at least 128 (the
    side of a matrix unit) even where the logits then exceed the budget. `num_tokens` if that is
    smaller.

  >>> default_chunk_size(8192, 151_936)
  1024
  """
  affordable = max(128, _CHUNK_ELEMENTS // vocab_size)
  return min(num_tokens, 1 << affordable.bit_length() - 1)


def tokens_by_chunk(mask: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
  """Lists the tokens in the mask, in order and without gaps, to be cut into chunks.

  Args:
    mask: bool [num_tokens], true at tokens to list.
    chunk: tokens per chunk.

  Returns:
    (indices int32 [ceil(num_tokens / chunk) * chunk], number of chunks int32). The tokens in the
    mask come first; after them come increasing indices >= num_tokens, which no token has. Chunks
    beyond the returned number hold only such indices, so every mask fits.

  >>> tokens, chunks = tokens_by_chunk(jnp.array([False, True, False, True, True]), chunk=2)
  >>> tokens.tolist(), int(chunks)
  ([1, 3, 4, 8, 9, 10], 2)
  """
  num_tokens = mask.size
  slots = jnp.arange(-(-num_tokens // chunk) * chunk, dtype=jnp.int32)
  count = jnp.sum(mask, dtype=jnp.int32)
  inside_first = jnp.argsort(~mask, stable=True).astype(jnp.int32)
  inside_first = jnp.pad(inside_first, (0, slots.size - num_tokens))
  return jnp.where(slots < count, inside_first, num_tokens + slots), (count + chunk - 1) // chunk
