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
from egad_jax.head.chunks import default_chunk_size
from egad_jax.head.long_spans import LONG_SPANS
from egad_jax.head.span_blocks import cut_into_blocks
from egad_jax.head.span_terms import Side, Terms, TermsOfPairs
from egad_jax.methods.method import Context, SpanLoss
from egad_jax.types import Stats

PairedHead = Callable[..., tuple[jax.Array, Stats]]

# Most tokens of a block: the side of a matrix unit. The sums over spans cost this many
# multiply-adds for each logit.
_BLOCK = 128


def blocks_of_chunk(chunk_size: int | None, num_tokens: int, vocab_size: int) -> tuple[int, int]:
  """Returns (blocks of a chunk, tokens of a block on either side).

  Args:
    chunk_size: the most tokens of each model whose logits may exist at once; None for
      `default_chunk_size`, as in the other heads. Two models' logits and averages exist beside one
      another, so that memory grows by more with it than there.
    num_tokens: tokens of all rows on either side.
    vocab_size: entries of the larger vocabulary.

  >>> blocks_of_chunk(None, 8192, 151_936)
  (8, 128)
  """
  chunk = min(chunk_size or default_chunk_size(num_tokens, vocab_size), num_tokens)
  blocks = -(-chunk // _BLOCK)
  return blocks, chunk // blocks


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
      to 128 tokens; None for the default of `blocks_of_chunk`. The result does not depend on it.

  Returns:
    `head(student_hidden [batch, seq, Ds], student_unembedding [>= Vs, Ds], teacher_hidden
    [batch, seq, Dt], teacher_unembedding [>= Vt, Dt], batch, context) -> (loss, stats)`, where
    `loss` is the SUM over the valid span pairs (float32 scalar) and stats are `{name: [batch, C]}`,
    C = seq, zero at other pairs. Logits are float32, and gradients are as in `distillation_head`.
    Gradient flows to the student alone. Hidden states whose logits predict no token of a valid
    pair are never read. A second derivative is not defined.
  """

  sizes = _Sizes(student_vocab_size, teacher_vocab_size, chunk_size)
  soft_caps = student_soft_cap, teacher_soft_cap

  @jax.custom_vjp
  def summed_loss(*args):
    return _summed(loss, sizes, soft_caps, args, with_gradient=False)[0]

  def forward(*args):
    output, gradients = _summed(loss, sizes, soft_caps, args, with_gradient=True)
    assert gradients is not None
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
    # What a teacher attached is not read here, and rows have no gradient.
    batch = batch._replace(attached=())
    teacher = teacher_hidden, teacher_unembedding
    return summed_loss(student_hidden, student_unembedding, *teacher, batch, context)

  return head


class _Sizes(NamedTuple):
  """The sizes that `paired_head` takes."""

  student_vocab: int
  teacher_vocab: int
  chunk: int | None


def _summed(
  loss: SpanLoss,
  sizes: _Sizes,
  soft_caps: tuple[float | None, float | None],
  args: tuple[Any, ...],
  *,
  with_gradient: bool,
) -> tuple[tuple[jax.Array, Stats], tuple[jax.Array, jax.Array] | None]:
  """Returns what the head returns, and the gradients by student_hidden and student_unembedding.

  Args:
    loss: the method's loss of span pairs.
    sizes: the vocabularies and the chunk.
    soft_caps: the caps of the student's and the teacher's logits.
    args: the arguments of the head.
    with_gradient: whether to make the gradients; None stands for them otherwise.
  """
  student_hidden, student_unembedding, teacher_hidden, teacher_unembedding, batch, context = args
  num_rows, seq = batch.student_spans.shape
  num_tokens = num_rows * seq
  largest = max(sizes.student_vocab, sizes.teacher_vocab)
  blocks, size = blocks_of_chunk(sizes.chunk, num_tokens, largest)
  layout = cut_into_blocks(batch.student_spans, batch.teacher_spans, size, multiple=blocks)

  def side(hidden, unembedding, vocab_size, labels, soft_cap, order) -> Side:
    weight = unembedding[:vocab_size].astype(hidden.dtype)
    return Side(hidden.reshape(num_tokens, -1), weight, jnp.ravel(labels), soft_cap, order)

  student = side(
    student_hidden,
    student_unembedding,
    sizes.student_vocab,
    batch.student.labels,
    soft_caps[0],
    layout.student,
  )
  teacher = side(
    teacher_hidden,
    teacher_unembedding,
    sizes.teacher_vocab,
    batch.teacher.labels,
    soft_caps[1],
    layout.teacher,
  )
  of = TermsOfPairs(loss, student, teacher, layout, seq, blocks, size)
  kept_entries = loss.kept_entries(sizes.teacher_vocab)
  choice = None if kept_entries is None else of.choose(kept_entries, num_rows, context)

  accumulator = jnp.promote_types(student_hidden.dtype, jnp.float32)
  of_chunk = lambda i: of.chunk_terms(i, choice, context, with_gradient)
  of_long_pair = lambda i: of.long_terms(i, choice, context, with_gradient, accumulator)
  stats = {
    name: jnp.zeros(num_tokens, stat.dtype)
    for name, stat in jax.eval_shape(of_chunk, jnp.int32(0)).stats.items()
  }
  gradients: Any = (None, None)
  if with_gradient:
    gradients = jnp.zeros_like(student.hidden), jnp.zeros(student.weight.shape, accumulator)

  def add(terms: Terms, carry):
    total, stats, hidden_gradient, unembedding_gradient = carry
    put = lambda whole, part, index: whole.at[index].set(part, mode="drop", unique_indices=True)
    stats = {name: put(stats[name], part, terms.pairs) for name, part in terms.stats.items()}
    if with_gradient:
      hidden_gradient = put(hidden_gradient, terms.hidden_gradient, terms.tokens)
      unembedding_gradient = unembedding_gradient + terms.unembedding_gradient
    return total + terms.loss, stats, hidden_gradient, unembedding_gradient

  carry = (jnp.zeros((), accumulator), stats, *gradients)
  carry = jax.lax.fori_loop(0, of.num_chunks, lambda i, c: add(of_chunk(i), c), carry)
  if of.may_be_long:
    with jax.named_scope(LONG_SPANS):
      carry = jax.lax.fori_loop(0, layout.num_long, lambda i, c: add(of_long_pair(i), c), carry)
  total, stats, hidden_gradient, unembedding_gradient = carry
  output = total, {name: stat.reshape(num_rows, seq) for name, stat in stats.items()}
  if not with_gradient:
    return output, None
  padding = ((0, student_unembedding.shape[0] - sizes.student_vocab), (0, 0))
  hidden_gradient = hidden_gradient.reshape(student_hidden.shape)
  return output, (hidden_gradient, jnp.pad(unembedding_gradient, padding))


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
