"""The teacher of one chunk of tokens, made of the teacher's outputs of either kind.

No other module of the heads asks which kind the outputs are, but for the kernels, which read hidden
states. A `TopK` is made dense here, for one chunk at a time: the loss is then exactly the loss
against the distribution of `losses.spread_tail`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax.head.logits import logits_from, soft_capped
from egad_jax.losses.top_k import TopK, check_top_k, entropy_bracket, mask_top_k, spread_tail
from egad_jax.teachers.outputs import Hidden, Outputs
from egad_jax.types import Stats

TEACHER_ENTROPY = "teacher_entropy"
"""The key of `extras` that holds the teacher's entropy where the logits do not determine it."""

ENTROPY_BOUNDS = ("teacher_entropy_low", "teacher_entropy_high")
"""The stats that hold the bounds of an entropy that the teacher's source does not know, in nats."""


class ChunkTeacher(NamedTuple):
  """What a chunk's loss reads from the teacher.

  Attributes:
    logits: the teacher's logits, at least float32 [n, vocab], soft cap applied; -inf where the
      source says that the probability is 0.
    entropy: entropy of the teacher's true distribution in nats, [n], if the source knows it and the
      logits do not have it; else None.
    stats: {name: [n]}, what is to be reported of the source: the bracket of an entropy that it does
      not know; {} for nothing.
  """

  logits: jax.Array
  entropy: jax.Array | None
  stats: Stats

  def extras(self, extras: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    """Returns a token loss's `extras` with the true entropy, if it is known."""
    return extras if self.entropy is None else {**extras, TEACHER_ENTROPY: self.entropy}


def vocabulary_rows(outputs: Outputs, student_rows: int) -> int:
  """Returns the rows of the teacher's unembedding; `student_rows` if it has none."""
  return outputs.unembedding.shape[0] if isinstance(outputs, Hidden) else student_rows


def check_outputs(outputs: Outputs, tokens: tuple[int, ...], vocab: int | None) -> None:
  """Raises ValueError or TypeError, which names the argument, unless the outputs fit.

  Args:
    outputs: the teacher's outputs.
    tokens: the shape of the tokens, [batch, seq] or any other.
    vocab: number of vocabulary entries, which bounds the k of a `TopK`; None to check only what
      does not depend on it.
  """
  if isinstance(outputs, TopK):
    if outputs.log_tail is None:
      raise ValueError("log_tail of a teacher's TopK must be given, got None.")
    if vocab is not None:
      check_top_k(outputs, (*tokens, vocab))
    return
  hidden, unembedding = outputs.hidden, outputs.unembedding
  if unembedding.ndim != 2 or unembedding.shape[1] != hidden.shape[-1]:
    raise ValueError(
      f"teacher_unembedding must be [vocab, {hidden.shape[-1]}] to fit teacher_hidden "
      f"{hidden.shape}; got {unembedding.shape}."
    )
  if hidden.shape[:-1] != tokens:
    raise ValueError(
      f"teacher_hidden[..., 0] must have the shape of the tokens, {tokens}; got "
      f"{hidden.shape[:-1]}."
    )


def mapped(
  outputs: Outputs, per_token: Callable[[Any], Any], shared: Callable[[Any], Any] = lambda x: x
) -> Outputs:
  """Applies `per_token` to arrays that have an entry per token, `shared` to the others; no taps."""
  if isinstance(outputs, Hidden):
    return Hidden(per_token(outputs.hidden), shared(outputs.unembedding))
  return jax.tree.map(per_token, outputs)


def masked(outputs: Outputs, mask: jax.Array) -> Outputs:
  """Returns outputs of tokens [n] that are finite outside the mask, bool [n]."""
  if isinstance(outputs, TopK):
    return mask_top_k(outputs, mask)
  return mapped(outputs, lambda x: jnp.where(mask[:, None], x, 0))


def prepared(
  outputs: Outputs, vocab: int, split: Callable[[jax.Array, int], jax.Array] = lambda x, axis: x
) -> Outputs:
  """Returns outputs for `chunk_teacher`: does once what is the same for all chunks.

  Args:
    outputs: the teacher's outputs.
    vocab: number of real vocabulary entries.
    split: (array, axis of the vocabulary) -> the array, with its sharding constrained.
  """
  if isinstance(outputs, TopK):
    return outputs
  unembedding = outputs.unembedding[:vocab].astype(outputs.hidden.dtype)
  return outputs._replace(unembedding=split(unembedding, 0))


def chunk_teacher(
  rows: Outputs,
  vocab: int,
  soft_cap: float | None,
  split: Callable[[jax.Array, int], jax.Array] = lambda x, axis: x,
) -> ChunkTeacher:
  """Returns the teacher of a chunk.

  Args:
    rows: `prepared` outputs, with the arrays per token cut down to the chunk's n tokens.
    vocab: number of real vocabulary entries.
    soft_cap: cap of logits made of hidden states; None for no cap. The log-probabilities of a
      `TopK` are taken as they are.
    split: as for `prepared`.
  """
  if isinstance(rows, Hidden):
    logits = split(logits_from(rows.hidden, rows.unembedding), 1)
    return ChunkTeacher(soft_capped(logits, soft_cap), None, {})
  logits = split(spread_tail(rows, vocab), 1)
  if rows.entropy is not None:
    return ChunkTeacher(logits, rows.entropy.astype(logits.dtype), {})
  bounds = entropy_bracket(rows, vocab)
  return ChunkTeacher(logits, None, dict(zip(ENTROPY_BOUNDS, bounds, strict=True)))
