"""The head for paired rows: logits of both models, each over its own vocabulary, one row at a time.

A chunk of text (see `losses.chunks`) covers several tokens of a row, so this head computes whole
rows at a time, where the other heads may split a row anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from egad_jax.data.batches import PairedBatch
from egad_jax.head.logits import logits_from, soft_capped
from egad_jax.losses.chunks import chunk_mask
from egad_jax.methods.method import ChunkLoss, Context
from egad_jax.types import Stats

# (student_logits [seq, Vs], teacher_logits [seq, Vt], one row of a PairedBatch, context) ->
# (loss [C], stats {name: [C]}), C = seq.
RowLoss = Callable[[jax.Array, jax.Array, PairedBatch, Context], tuple[jax.Array, Stats]]
PairedHead = Callable[..., tuple[jax.Array, Stats]]


def row_loss(chunk_loss: ChunkLoss) -> RowLoss:
  """Returns a method's chunk loss as a function of one row of a `PairedBatch`."""

  def loss(student_logits, teacher_logits, row: PairedBatch, context: Context):
    chunks = (row.student_chunks, row.teacher_chunks)
    return chunk_loss(student_logits, teacher_logits, row.student.labels, *chunks, context)

  return loss


def paired_head(
  loss: RowLoss,
  *,
  student_vocab_size: int,
  teacher_vocab_size: int,
  student_soft_cap: float | None = None,
  teacher_soft_cap: float | None = None,
) -> PairedHead:
  """Makes the head that turns hidden states of paired rows into a summed loss.

  Args:
    loss: the loss of one row's chunks, see `row_loss`.
    student_vocab_size: number of real entries Vs of the student's vocabulary; further rows of the
      unembedding are padding and are never multiplied.
    teacher_vocab_size: number of real entries Vt of the teacher's vocabulary, likewise.
    student_soft_cap: cap of the student's logits, `cap * tanh(logits / cap)`; None for no cap.
    teacher_soft_cap: cap of the teacher's logits; None for no cap.

  Returns:
    `head(student_hidden [batch, seq, Ds], student_unembedding [>= Vs, Ds], teacher_hidden
    [batch, seq, Dt], teacher_unembedding [>= Vt, Dt], batch, context) -> (loss, stats)`, where
    `loss` is the SUM over the valid chunks (float32 scalar) and stats are `{name: [batch, C]}`,
    zero at other chunks. The logits of one row exist at a time, in float32; the backward pass
    recomputes them. Gradient flows to the student alone. Hidden states whose logits predict no
    token of a chunk change nothing, even if they are NaN.
  """

  def head(
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    teacher_hidden: jax.Array,
    teacher_unembedding: jax.Array,
    batch: PairedBatch,
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    teacher = jax.lax.stop_gradient((teacher_hidden, teacher_unembedding))

    def logits(hidden, unembedding, chunks, vocab_size, soft_cap):
      # 0 * NaN is NaN, so hidden states that predict nothing are zeroed before any matmul.
      hidden = jnp.where((chunks > 0)[:, None], hidden, 0)
      # The cast is inside the loop, so that the gradient accumulates in the unembedding's dtype.
      weight = unembedding[:vocab_size].astype(hidden.dtype)
      return soft_capped(logits_from(hidden, weight), soft_cap)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_row(arguments):
      student_row, teacher_row, row = arguments
      value, stats = loss(
        logits(
          student_row,
          student_unembedding,
          row.student_chunks,
          student_vocab_size,
          student_soft_cap,
        ),
        logits(teacher_row, teacher[1], row.teacher_chunks, teacher_vocab_size, teacher_soft_cap),
        row,
        context,
      )
      valid = chunk_mask(row.student_chunks, row.teacher_chunks)
      stats = {k: jax.lax.stop_gradient(jnp.where(valid, v, 0)) for k, v in stats.items()}
      return jnp.sum(jnp.where(valid, value, 0)), stats

    losses, stats = jax.lax.map(of_row, (student_hidden, teacher[0], batch))
    return jnp.sum(losses), stats

  return head


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
