"""The objective of a batch: the method's summed loss as a function of the trained parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax.data.batches import Batch, PairedBatch
from egad_jax.head.inputs import Head
from egad_jax.head.paired import PairedHead, RowLoss, row_loss
from egad_jax.losses.chunks import chunk_mask
from egad_jax.methods.method import ChunkLoss, Context, Method, TokenLoss
from egad_jax.models.model import Model
from egad_jax.teachers import Hidden, Outputs, Teacher
from egad_jax.training.state import Frozen, student_params
from egad_jax.types import Metrics, Params, Stats


class Outcome(NamedTuple):
  """The results of an objective besides its gradient.

  Attributes:
    loss: float32 scalar, the sum over the tokens in `mask`.
    stats: statistics per token, {name: float32 [batch, seq]}.
    metrics: {name: (sum, count)}, metrics that are no average of `stats`; {} for none.
    mask: bool [batch, seq], the tokens (for paired rows, the aligned chunks) that are summed over.
  """

  loss: jax.Array
  stats: Stats
  metrics: Metrics
  mask: jax.Array


# (trainable, frozen, batch, context) -> (summed loss, outcome). The batch is a `Batch`, or a
# `PairedBatch` for `make_paired_objective`.
Objective = Callable[[Params, Frozen, Any, Context], tuple[jax.Array, Outcome]]


def make_objective(
  *,
  student: Model,
  teacher: Teacher,
  method: Method,
  make_head: Callable[[TokenLoss], Head],
  student_taps: tuple[int, ...] = (),
) -> Objective:
  """Returns `(trainable, frozen, batch, context) -> (summed loss, Outcome)`.

  Args:
    student: the model to train.
    teacher: the source of the teacher's outputs.
    method: the distillation method, one with a `token_loss`.
    make_head: token loss -> distillation head, sharded or not.
    student_taps: student layers, counted from 1, that the method's feature loss reads; () for none.
  """
  head = make_head(method.token_loss)
  label_head = None if method.serial is None else make_head(method.serial.label_loss)

  def logit_loss(
    trainable: Params, unembedding: jax.Array, hidden: jax.Array, outputs: Outputs, batch, context
  ):
    rest: Any = (unembedding, outputs, batch.labels, batch.mask, {}, context)
    if method.serial is None or label_head is None:
      return head.of_outputs(hidden, *rest)
    mapped = method.serial.apply(trainable["method"], hidden)
    loss, stats = head.of_outputs(mapped, *rest)
    # This loss does not read the teacher's logits, so the compiler leaves their matmul out.
    label_loss, label_stats = label_head.of_outputs(hidden, *rest)
    return loss + label_loss, stats | label_stats

  def objective(trainable: Params, frozen: Frozen, batch: Batch, context: Context):
    outputs = teacher.outputs(frozen.teacher, batch, with_taps=True)
    params = student_params(trainable, frozen.student)
    hidden, taps = student.apply(
      params, batch.tokens, batch.positions, batch.segment_ids, taps=student_taps
    )
    loss, stats = logit_loss(
      trainable, student.unembedding(params), hidden, outputs, batch, context
    )
    metrics: Metrics = {}
    if method.feature_loss is not None:
      # An experiment whose teacher has no taps is refused when it is built.
      assert isinstance(outputs, Hidden)
      assert outputs.taps is not None
      feature, metrics = method.feature_loss(
        trainable["method"], taps, outputs.taps, stats, batch.mask, context
      )
      loss = loss + feature
      metrics = metrics | {"feature_loss": (feature, jnp.sum(batch.mask, dtype=jnp.float32))}
    return loss, Outcome(loss, stats, metrics, batch.mask)

  return objective


def make_paired_objective(
  *,
  student: Model,
  teacher: Teacher,
  chunk_loss: ChunkLoss,
  make_head: Callable[[RowLoss], PairedHead],
) -> Objective:
  """Returns `(trainable, frozen, batch, context) -> (summed loss, Outcome)` for paired rows.

  The loss is a sum over aligned chunks, and the statistics [batch, C] are per chunk. The metrics
  "tokens" and "cross_entropy" are over the student's target tokens, as with every other method.
  "uncovered" is the teacher's probability mass that the projection does not cover.

  Args:
    student: the model to train; it reads `batch.student`.
    teacher: the source of the teacher's outputs.
    chunk_loss: the method's loss of one row's chunks.
    make_head: row loss -> distillation head, sharded or not.
  """
  head = make_head(row_loss(chunk_loss))

  def objective(trainable: Params, frozen: Frozen, batch: PairedBatch, context: Context):
    outputs = teacher.outputs(frozen.teacher, batch)
    # An experiment with another kind of outputs is refused when it is built.
    assert isinstance(outputs, Hidden)
    rows = batch.student
    params = student_params(trainable, frozen.student)
    hidden, _ = student.apply(params, rows.tokens, rows.positions, rows.segment_ids)
    loss, stats = head(
      hidden,
      student.unembedding(params),
      outputs.hidden,
      outputs.unembedding,
      batch,
      context,
    )
    mask = chunk_mask(batch.student_chunks, batch.teacher_chunks)
    tokens = jnp.sum(rows.mask, dtype=jnp.float32)
    # A count of 0 is read as 1, so that the number of tokens adds up over micro-batches.
    metrics = {
      "tokens": (tokens, jnp.float32(0)),
      "cross_entropy": (jnp.sum(stats["student_nll"]), tokens),
      "uncovered": (jnp.sum(stats["uncovered"]), jnp.sum(mask, dtype=jnp.float32)),
    }
    return loss, Outcome(loss, stats, metrics, mask)

  return objective
