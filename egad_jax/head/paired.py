"""The head for paired rows: logits of both models, each over its own vocabulary, by chunks.

A chunk is several blocks of whole span pairs, see `span_blocks`. As in `head.chunked`, a loop makes
the logits of one chunk, computes the loss and its gradient from them and drops them, so that no
[seq, vocab] array exists for a long row. If the loss compares the likeliest entries of a row, a
loop over the teacher's chunks chooses them first. A span with more tokens than a block is summed
piece by piece in a loop of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from egad_jax.data.batches import PairedBatch
from egad_jax.head.chunked import default_chunk_size, logits_from, soft_capped
from egad_jax.head.long_spans import LONG_SPANS, LongTokens, tokens_of_pair
from egad_jax.head.span_blocks import (
  BlockTokens,
  SideOrder,
  SpanBlocks,
  cut_into_blocks,
  pairs_of_blocks,
  tokens_of_blocks,
)
from egad_jax.losses.cross_tokenizer import largest_of_spans, likeliest_entries
from egad_jax.losses.spans import SpanPairs
from egad_jax.methods.method import Context, SpanLoss
from egad_jax.types import Stats

PairedHead = Callable[..., tuple[jax.Array, Stats]]

# Most tokens of a block: the side of a matrix unit. The sums over spans cost this many multiply-adds
# for each logit.
_BLOCK = 128


def paired_chunk_size(num_tokens: int, vocab_size: int) -> int:
  """Returns the default number of tokens of each model whose logits exist at once.

  It is half of `default_chunk_size`, because two models' logits and averages exist beside one
  another.

  >>> paired_chunk_size(8192, 151_936)
  512
  """
  return max(1, default_chunk_size(num_tokens, vocab_size) // 2)


class _Side(NamedTuple):
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


class _Terms(NamedTuple):
  """What some span pairs add to the results; the gradients are None without differentiation.

  Attributes:
    loss: their summed loss.
    stats: {name: [n]}.
    pairs: int32 [n], the indices of the pairs in the flat mask.
    tokens: int32, the indices of the student's tokens, as many as rows of `hidden_gradient`.
    hidden_gradient: [tokens, Ds].
    unembedding_gradient: [Vs, Ds].
  """

  loss: jax.Array
  stats: Stats
  pairs: jax.Array
  tokens: jax.Array
  hidden_gradient: jax.Array | None
  unembedding_gradient: jax.Array | None


def paired_head(
  loss: SpanLoss,
  *,
  student_vocab_size: int,
  teacher_vocab_size: int,
  student_soft_cap: float | None = None,
  teacher_soft_cap: float | None = None,
  chunk_size: int | None = None,
) -> PairedHead:
  """Makes the head that turns hidden states of paired rows into a summed loss.

  Args:
    loss: the method's loss of span pairs.
    student_vocab_size: number of real entries Vs of the student's vocabulary; further rows of the
      unembedding are padding and are never multiplied.
    teacher_vocab_size: number of real entries Vt of the teacher's vocabulary, likewise.
    student_soft_cap: cap of the student's logits, `cap * tanh(logits / cap)`; None for no cap.
    teacher_soft_cap: cap of the teacher's logits; None for no cap.
    chunk_size: tokens of each model whose logits exist at once, rounded down to whole blocks of up
      to 128 tokens; None for `paired_chunk_size`. The result does not depend on it.

  Returns:
    `head(student_hidden [batch, seq, Ds], student_unembedding [>= Vs, Ds], teacher_hidden
    [batch, seq, Dt], teacher_unembedding [>= Vt, Dt], batch, context) -> (loss, stats)`, where
    `loss` is the SUM over the valid span pairs (float32 scalar) and stats are `{name: [batch, C]}`,
    C = seq, zero at other pairs. Logits are float32, and gradients are as in `distillation_head`.
    Gradient flows to the student alone. Hidden states whose logits predict no token of a valid
    pair are never read. A second derivative is not defined.
  """

  def run(args, with_gradient: bool):
    student_hidden, student_unembedding, teacher_hidden, teacher_unembedding = args[:4]
    batch, context = args[4:]
    num_rows, seq = batch.student_spans.shape
    num_tokens = num_rows * seq
    chunk = chunk_size or paired_chunk_size(num_tokens, max(student_vocab_size, teacher_vocab_size))
    blocks = -(-min(chunk, num_tokens) // _BLOCK)
    size = max(1, min(chunk, num_tokens) // blocks)
    layout = cut_into_blocks(batch.student_spans, batch.teacher_spans, size, multiple=blocks)

    def side(hidden, unembedding, vocab_size, labels, soft_cap, order) -> _Side:
      weight = unembedding[:vocab_size].astype(hidden.dtype)
      flat = hidden.reshape(num_tokens, -1), weight, labels.reshape(-1)
      return _Side(*flat, soft_cap, order)

    student = side(
      *(student_hidden, student_unembedding, student_vocab_size),
      *(batch.student.labels, student_soft_cap, layout.student),
    )
    teacher = side(
      *(teacher_hidden, teacher_unembedding, teacher_vocab_size),
      *(batch.teacher.labels, teacher_soft_cap, layout.teacher),
    )
    of = _Parts(loss, student, teacher, layout, seq, blocks, size)
    kept_entries = loss.kept_entries(teacher_vocab_size)
    choice = None if kept_entries is None else of.choose(kept_entries, num_rows, context)

    accumulator = jnp.promote_types(student_hidden.dtype, jnp.float32)
    terms_of_chunk = lambda i: of.chunk_terms(i, choice, context, with_gradient)
    stats = {
      name: jnp.zeros(num_tokens, stat.dtype)
      for name, stat in jax.eval_shape(terms_of_chunk, jnp.int32(0)).stats.items()
    }
    start = (jnp.zeros((), accumulator), stats, None, None)
    if with_gradient:
      zeros = jnp.zeros_like(student.hidden), jnp.zeros(student.weight.shape, accumulator)
      start = (*start[:2], *zeros)

    def add(terms: _Terms, carry):
      total, stats, hidden_gradient, unembedding_gradient = carry
      put = lambda whole, part, index: whole.at[index].set(part, mode="drop", unique_indices=True)
      stats = {name: put(stats[name], part, terms.pairs) for name, part in terms.stats.items()}
      if with_gradient:
        hidden_gradient = put(hidden_gradient, terms.hidden_gradient, terms.tokens)
        unembedding_gradient = unembedding_gradient + terms.unembedding_gradient
      return total + terms.loss, stats, hidden_gradient, unembedding_gradient

    chunks = (layout.count + blocks - 1) // blocks
    carry = jax.lax.fori_loop(0, chunks, lambda i, c: add(terms_of_chunk(i), c), start)
    if of.may_be_long:
      of_pair = lambda i: of.long_terms(i, choice, context, with_gradient, accumulator)
      with jax.named_scope(LONG_SPANS):
        carry = jax.lax.fori_loop(0, layout.num_long, lambda i, c: add(of_pair(i), c), carry)
    total, stats, hidden_gradient, unembedding_gradient = carry
    output = total, {name: stat.reshape(num_rows, seq) for name, stat in stats.items()}
    if not with_gradient:
      return output, None
    padding = ((0, student_unembedding.shape[0] - student_vocab_size), (0, 0))
    hidden_gradient = hidden_gradient.reshape(student_hidden.shape)
    return output, (hidden_gradient, jnp.pad(unembedding_gradient, padding))

  @jax.custom_vjp
  def summed_loss(*args):
    return run(args, with_gradient=False)[0]

  def forward(*args):
    output, gradients = run(args, with_gradient=True)
    # An empty array carries the dtype that the cotangent of the unembedding must have.
    return output, (*gradients, jnp.zeros((0,), args[1].dtype))

  def backward(residuals, cotangents):
    hidden_gradient, unembedding_gradient, like = residuals
    scale = cotangents[0]
    of_hidden = (scale * hidden_gradient).astype(hidden_gradient.dtype)
    return of_hidden, (scale * unembedding_gradient).astype(like.dtype), *(None,) * 4

  summed_loss.defvjp(forward, backward)

  def head(
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    teacher_hidden: jax.Array,
    teacher_unembedding: jax.Array,
    batch: PairedBatch,
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    teacher = jax.lax.stop_gradient((teacher_hidden, teacher_unembedding))
    # What a teacher attached is not read here, and rows have no gradient.
    batch = batch._replace(attached=())
    return summed_loss(student_hidden, student_unembedding, *teacher, batch, context)

  return head


class _Choice(NamedTuple):
  """What the loop over the teacher's chunks leaves for the loop over both.

  Attributes:
    kept: bool [rows, Vt], the entries that the loss compares.
    stats: {name: [N]}, what `SpanLoss.read_teacher` said of each pair, at its index in the mask.
  """

  kept: jax.Array
  stats: Stats


class _Parts(NamedTuple):
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
  student: _Side
  teacher: _Side
  layout: SpanBlocks
  seq: int
  blocks: int
  size: int

  @property
  def may_be_long(self) -> bool:
    """Whether a row has room for a span that is longer than a block."""
    return self.seq > self.size

  @property
  def _num_tokens(self) -> int:
    return self.layout.mask_indices.size

  def _pairs(self, i: jax.Array) -> jax.Array:
    return pairs_of_blocks(self.layout, i * self.blocks, self.blocks, self.size)

  def _tokens(self, side: _Side, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    index = i * self.blocks
    return tokens_of_blocks(self.layout, side.order, index, self.blocks, self.size)

  def _teacher_chunk(self, i: jax.Array) -> tuple[BlockTokens, jax.Array]:
    """(the teacher's tokens of a chunk, their labels)."""
    tokens, members = self._tokens(self.teacher, i)
    logits = logits_from(self.teacher.rows(tokens), self.teacher.weight)
    return BlockTokens(self.teacher.capped(logits), members), self.teacher.labels_of(tokens)

  def _long_tokens(self, side: _Side, pair: jax.Array) -> jax.Array:
    piece = self.blocks * self.size
    return tokens_of_pair(side.order, pair, -(-self.seq // piece), piece)

  def _long_teacher(self, pair: jax.Array) -> LongTokens:
    tokens = self._long_tokens(self.teacher, pair)
    return self.teacher.long_tokens(tokens, self.teacher.rows(tokens), self.teacher.weight)

  def choose(self, count: int, num_rows: int, context: Context) -> _Choice:
    """Reads the teacher's chunks and chooses the entries of each row."""

    def read(tokens: BlockTokens | LongTokens) -> tuple[jax.Array, Stats]:
      return self.loss.read_teacher(lambda t: tokens.log_average(t, self.loss.average), context)

    def put(stats: Stats, parts: Stats, pairs: jax.Array) -> Stats:
      return {k: stats[k].at[pairs].set(v, mode="drop") for k, v in parts.items()}

    def of_chunk(i, carry):
      best, stats = carry
      log_p, parts = read(self._teacher_chunk(i)[0])
      pairs = self._pairs(i)
      log_p = log_p.reshape(*pairs.shape, -1)
      largest = jax.vmap(largest_of_spans)(log_p, pairs < self._num_tokens)
      # An empty block has the row `num_rows` or a later one, which does not exist.
      best = best.at[pairs[:, 0] // self.seq].max(largest, mode="drop")
      return best, put(stats, parts, pairs.reshape(-1))

    def of_pair(i, carry):
      best, stats = carry
      pair = self.layout.long_pairs[i]
      log_p, parts = read(self._long_teacher(pair))
      index = self.layout.mask_indices[pair][None]
      return best.at[index // self.seq].max(log_p), put(stats, parts, index)

    log_p, parts = jax.eval_shape(lambda i: read(self._teacher_chunk(i)[0]), jnp.int32(0))
    best = jnp.full((num_rows, log_p.shape[-1]), -jnp.inf, log_p.dtype)
    carry = best, {k: jnp.zeros(self._num_tokens, v.dtype) for k, v in parts.items()}
    chunks = (self.layout.count + self.blocks - 1) // self.blocks
    carry = jax.lax.fori_loop(0, chunks, of_chunk, carry)
    if self.may_be_long:
      with jax.named_scope(LONG_SPANS):
        carry = jax.lax.fori_loop(0, self.layout.num_long, of_pair, carry)
    return _Choice(likeliest_entries(carry[0], count), carry[1])

  def _summed(
    self,
    pairs: SpanPairs,
    index: jax.Array,
    choice: _Choice | None,
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
    self, i: jax.Array, choice: _Choice | None, context: Context, with_gradient: bool
  ) -> _Terms:
    """The terms of the pairs of a chunk."""
    pairs = self._pairs(i)
    index = pairs.reshape(-1)
    teacher, teacher_labels = self._teacher_chunk(i)
    tokens, members = self._tokens(self.student, i)
    rows, labels = self.student.rows(tokens), self.student.labels_of(tokens)
    kept = None
    if choice is not None:
      kept = choice.kept.at[pairs[:, 0] // self.seq].get(mode="clip")
      kept = jnp.repeat(kept, self.size, axis=0)

    def value(logits: jax.Array) -> tuple[jax.Array, Stats]:
      student = BlockTokens(self.student.capped(logits), members)
      of_pairs = SpanPairs(
        log_q=lambda t: student.log_average(t, self.loss.average),
        log_p=lambda t: teacher.log_average(t, self.loss.average),
        student_nll=student.nll(labels),
        teacher_nll=teacher.nll(teacher_labels),
        student_tokens=student.counts,
        teacher_tokens=teacher.counts,
        valid=index < self._num_tokens,
      )
      return self._summed(of_pairs, index, choice, kept, context)

    logits = logits_from(rows, self.student.weight)
    if not with_gradient:
      return _Terms(*value(logits), index, tokens, None, None)
    loss, pullback, stats = jax.vjp(value, logits, has_aux=True)
    # The two gradient matmuls run in the compute dtype and accumulate in float32.
    gradient = pullback(jnp.ones_like(loss))[0].astype(rows.dtype)
    of_unembedding = jnp.einsum("nv,nd->vd", gradient, rows, preferred_element_type=loss.dtype)
    return _Terms(loss, stats, index, tokens, gradient @ self.student.weight, of_unembedding)

  def long_terms(
    self,
    i: jax.Array,
    choice: _Choice | None,
    context: Context,
    with_gradient: bool,
    accumulator: Any,
  ) -> _Terms:
    """The terms of a long pair."""
    pair = self.layout.long_pairs[i]
    index = self.layout.mask_indices[pair][None]
    tokens = self._long_tokens(self.student, pair)
    teacher = self._long_teacher(pair)
    kept = None if choice is None else choice.kept[index // self.seq]

    def value(rows: jax.Array, weight: jax.Array) -> tuple[jax.Array, Stats]:
      student = self.student.long_tokens(tokens, rows, weight)
      of_pair = SpanPairs(
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
    flat = tokens.reshape(-1)
    if not with_gradient:
      return _Terms(*value(rows, weight), index, flat, None, None)
    loss, pullback, stats = jax.vjp(value, rows, weight, has_aux=True)
    of_rows, of_weight = pullback(jnp.ones_like(loss))
    return _Terms(loss, stats, index, flat, of_rows.reshape(flat.size, -1), of_weight)


def sharded_paired_head(
  head: PairedHead, mesh: jax.sharding.Mesh, *, batch_axes: tuple[str, ...]
) -> PairedHead:
  """Runs `head` on each device's rows; same arguments, value and gradient as `head`.

  Devices along the other axes of the mesh repeat the same work, because a row is never split.

  Args:
    head: the head of one device, from `paired_head`.
    mesh: the mesh that the caller's arrays are sharded over.
    batch_axes: mesh axes that divide the number of rows.
  """
  rows, whole = PartitionSpec(batch_axes), PartitionSpec()

  def on_device(*args):
    loss, stats = head(*args)
    return loss[None], stats

  def sharded(*args) -> tuple[jax.Array, Stats]:
    # The sum over devices stays outside `shard_map`: inside, its transpose would sum once more.
    losses, stats = jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=(rows, whole, rows, whole, rows, whole),
      out_specs=(rows, rows),
      check_vma=False,
    )(*args)
    return jnp.sum(losses), stats

  return sharded
