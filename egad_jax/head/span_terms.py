"""What chunks of span pairs, and long span pairs, add to a loss and its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax.head.chunked import logits_from, soft_capped
from egad_jax.head.long_spans import LONG_SPANS, LongTokens, tokens_of_pair
from egad_jax.head.span_blocks import (
  BlockTokens,
  SideOrder,
  SpanBlocks,
  pairs_of_blocks,
  tokens_of_blocks,
)
from egad_jax.losses.cross_tokenizer import largest_of_spans, likeliest_entries
from egad_jax.losses.spans import SpanPairs
from egad_jax.losses.sparse_projection import vocabulary_major
from egad_jax.methods.method import Context, SpanLoss
from egad_jax.types import Stats


class Side(NamedTuple):
  """One model's tokens, and how to make their logits.

  Attributes:
    hidden: [N, D].
    weight: [vocab, D], the unembedding without padding, in the dtype of `hidden`.
    labels: int32 [N].
    soft_cap: the cap of the logits; None for no cap.
    order: the tokens sorted by span pair.
  """

  hidden: jax.Array
  weight: jax.Array
  labels: jax.Array
  soft_cap: float | None
  order: SideOrder

  def rows(self, tokens: jax.Array) -> jax.Array:
    """Hidden states [..., D] of tokens; 0 for indices that no token has."""
    return self.hidden.at[tokens].get(mode="fill", fill_value=0)

  def labels_of(self, tokens: jax.Array) -> jax.Array:
    return self.labels.at[tokens].get(mode="fill", fill_value=0)

  def capped(self, logits: jax.Array) -> jax.Array:
    return soft_capped(logits, self.soft_cap)

  def long_tokens(self, tokens: jax.Array, rows: jax.Array, weight: jax.Array) -> LongTokens:
    """The tokens [pieces, size] of a long span; `rows` and `weight` may be differentiated."""
    logits_of = lambda hidden: self.capped(logits_from(hidden, weight.astype(hidden.dtype)))
    return LongTokens(logits_of, rows, self.labels_of(tokens), tokens < self.labels.size)


class Terms(NamedTuple):
  """What some span pairs add to the results; the gradients are None without differentiation.

  Attributes:
    loss: their summed loss.
    stats: {name: [...]}.
    pairs: int32 [...], the indices of the pairs in the flat mask.
    tokens: int32 [...], the indices of the student's tokens.
    hidden_gradient: [..., Ds], of these tokens.
    unembedding_gradient: [Vs, Ds].
  """

  loss: jax.Array
  stats: Stats
  pairs: jax.Array
  tokens: jax.Array
  hidden_gradient: jax.Array | None
  unembedding_gradient: jax.Array | None


class Choice(NamedTuple):
  """What the loop over the teacher's chunks leaves for the loop over both.

  Attributes:
    kept: bool [rows, Vt], the entries that the loss compares.
    stats: {name: [N]}, what `SpanLoss.read_teacher` said of each pair, at its index in the mask.
    largest: [N], the largest of the teacher's logits at each token of a block.
  """

  kept: jax.Array
  stats: Stats
  largest: jax.Array


class TermsOfPairs(NamedTuple):
  """The loss of chunks and of long pairs.

  Attributes:
    loss: the method's loss.
    student: the student's tokens.
    teacher: the teacher's tokens.
    layout: the blocks of span pairs.
    seq: tokens of a row on either side.
    blocks: blocks of a chunk.
    size: the most tokens of a block, and the pairs that it has room for.
  """

  loss: SpanLoss
  student: Side
  teacher: Side
  layout: SpanBlocks
  seq: int
  blocks: int
  size: int

  @property
  def may_be_long(self) -> bool:
    """Whether a row has room for a span that is longer than a block."""
    return self.seq > self.size

  @property
  def num_chunks(self) -> jax.Array:
    """The number of chunks that the blocks make."""
    return (self.layout.num_blocks + self.blocks - 1) // self.blocks

  @property
  def _num_tokens(self) -> int:
    return self.layout.mask_indices.size

  def _pairs(self, i: jax.Array) -> jax.Array:
    return pairs_of_blocks(self.layout, i * self.blocks, self.blocks, self.size)

  def _tokens(self, side: Side, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    index = i * self.blocks
    return tokens_of_blocks(self.layout, side.order, index, self.blocks, self.size)

  def _teacher_chunk(
    self, i: jax.Array, choice: Choice | None = None
  ) -> tuple[BlockTokens, jax.Array]:
    """(the teacher's tokens of a chunk, their indices [blocks, size])."""
    tokens, members = self._tokens(self.teacher, i)
    logits = _logits_of_blocks(self.teacher.rows(tokens), self.teacher.weight)
    largest = None
    if choice is not None:
      largest = choice.largest.at[tokens].get(mode="fill", fill_value=0)[..., None]
    return BlockTokens(self.teacher.capped(logits), members, largest), tokens

  def _long_tokens(self, side: Side, pair: jax.Array) -> jax.Array:
    piece = self.blocks * self.size
    return tokens_of_pair(side.order, pair, -(-self.seq // piece), piece)

  def _long_teacher(self, pair: jax.Array) -> LongTokens:
    tokens = self._long_tokens(self.teacher, pair)
    return self.teacher.long_tokens(tokens, self.teacher.rows(tokens), self.teacher.weight)

  def choose(self, count: int, num_rows: int, context: Context) -> Choice:
    """Reads the teacher's chunks and chooses the entries of each row."""

    def read(tokens: BlockTokens | LongTokens) -> tuple[jax.Array, Stats]:
      return self.loss.read_teacher(lambda t: tokens.log_average(t, self.loss.average), context)

    def put(stats: Stats, parts: Stats, pairs: jax.Array) -> Stats:
      return {k: stats[k].at[pairs].set(v, mode="drop") for k, v in parts.items()}

    def of_chunk(i, carry):
      best, stats, maxima = carry
      teacher, tokens = self._teacher_chunk(i)
      log_p, parts = read(teacher)
      maxima = maxima.at[tokens].set(teacher.maxima[..., 0], mode="drop")
      pairs = self._pairs(i)
      largest = jax.vmap(largest_of_spans)(log_p, pairs < self._num_tokens)
      # An empty block has the row `num_rows` or a later one, which does not exist.
      best = best.at[pairs[:, 0] // self.seq].max(largest, mode="drop")
      return best, put(stats, parts, pairs), maxima

    def of_pair(i, carry):
      best, stats, maxima = carry
      pair = self.layout.long_pairs[i]
      log_p, parts = read(self._long_teacher(pair))
      index = self.layout.mask_indices[pair][None]
      return best.at[index // self.seq].max(log_p), put(stats, parts, index), maxima

    log_p, parts = jax.eval_shape(lambda i: read(self._teacher_chunk(i)[0]), jnp.int32(0))
    best = jnp.full((num_rows, log_p.shape[-1]), -jnp.inf, log_p.dtype)
    zeros = lambda dtype: jnp.zeros(self._num_tokens, dtype)
    carry = best, {k: zeros(v.dtype) for k, v in parts.items()}, zeros(log_p.dtype)
    carry = jax.lax.fori_loop(0, self.num_chunks, of_chunk, carry)
    if self.may_be_long:
      with jax.named_scope(LONG_SPANS):
        carry = jax.lax.fori_loop(0, self.layout.num_long, of_pair, carry)
    best, stats, maxima = carry
    return Choice(likeliest_entries(best, count), stats, maxima)

  def _summed(
    self,
    pairs: SpanPairs,
    index: jax.Array,
    choice: Choice | None,
    kept: jax.Array | None,
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    """(summed loss, stats) of pairs with these indices in the mask."""
    if choice is None:
      teacher = self.loss.read_teacher(pairs.log_p, context)[1]
    else:
      teacher = {k: v.at[index].get(mode="fill", fill_value=0) for k, v in choice.stats.items()}
    value, stats = self.loss.function(pairs, teacher, kept, context)
    stats = {k: jax.lax.stop_gradient(v) for k, v in stats.items()}
    return jnp.sum(jnp.where(pairs.valid, value, 0)), stats

  def chunk_terms(
    self, i: jax.Array, choice: Choice | None, context: Context, with_gradient: bool
  ) -> Terms:
    """The terms of the pairs of a chunk."""
    index = self._pairs(i)
    teacher, teacher_tokens = self._teacher_chunk(i, choice)
    tokens, members = self._tokens(self.student, i)
    rows, labels = self.student.rows(tokens), self.student.labels_of(tokens)
    kept = None
    if choice is not None:
      # One row for all pairs of a block.
      kept = choice.kept.at[index[:, :1] // self.seq].get(mode="clip")

    def value(logits: jax.Array) -> tuple[jax.Array, Stats]:
      student = BlockTokens(self.student.capped(logits), members)
      of_pairs = SpanPairs(
        q=lambda t: student.average(t, self.loss.average),
        log_q=lambda t: student.log_average(t, self.loss.average),
        log_p=lambda t: teacher.log_average(t, self.loss.average),
        student_nll=student.nll(labels),
        teacher_nll=teacher.nll(self.teacher.labels_of(teacher_tokens)),
        student_tokens=student.counts,
        teacher_tokens=teacher.counts,
        valid=index < self._num_tokens,
      )
      return self._summed(of_pairs, index, choice, kept, context)

    logits = _logits_of_blocks(rows, self.student.weight)
    if not with_gradient:
      return Terms(*value(logits), index, tokens, None, None)
    loss, pullback, stats = jax.vjp(value, logits, has_aux=True)
    # The two gradient matmuls run in the compute dtype and accumulate in float32.
    gradient = pullback(jnp.ones_like(loss))[0].astype(rows.dtype)
    of_unembedding = jnp.einsum("bnv,bnd->vd", gradient, rows, preferred_element_type=loss.dtype)
    of_hidden = gradient @ self.student.weight
    return Terms(loss, stats, index, tokens, of_hidden, of_unembedding)

  def long_terms(
    self,
    i: jax.Array,
    choice: Choice | None,
    context: Context,
    with_gradient: bool,
    accumulator: Any,
  ) -> Terms:
    """The terms of a long pair."""
    pair = self.layout.long_pairs[i]
    index = self.layout.mask_indices[pair][None]
    tokens = self._long_tokens(self.student, pair)
    teacher = self._long_teacher(pair)
    kept = None if choice is None else choice.kept[index // self.seq]

    def value(rows: jax.Array, weight: jax.Array) -> tuple[jax.Array, Stats]:
      student = self.student.long_tokens(tokens, rows, weight)
      of_pair = SpanPairs(
        q=lambda t: jnp.exp(student.log_average(t, self.loss.average)),
        log_q=lambda t: student.log_average(t, self.loss.average),
        log_p=lambda t: teacher.log_average(t, self.loss.average),
        student_nll=student.nll(),
        teacher_nll=teacher.nll(),
        student_tokens=student.counts,
        teacher_tokens=teacher.counts,
        valid=jnp.ones(1, bool),
      )
      return self._summed(of_pair, index, choice, kept, context)

    rows, weight = self.student.rows(tokens), self.student.weight.astype(accumulator)
    if not with_gradient:
      return Terms(*value(rows, weight), index, tokens, None, None)
    loss, pullback, stats = jax.vjp(value, rows, weight, has_aux=True)
    return Terms(loss, stats, index, tokens, *pullback(jnp.ones_like(loss)))


def _logits_of_blocks(hidden: jax.Array, weight: jax.Array) -> jax.Array:
  """Logits [blocks, size, vocab] of hidden states [blocks, size, D], as in `logits_from`.

  They lie in memory as [blocks, vocab, size], the order in which the projection reads them.
  """
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = jnp.einsum("bnd,vd->bvn", hidden, weight, preferred_element_type=dtype)
  return vocabulary_major(jnp.swapaxes(logits, 1, 2))
