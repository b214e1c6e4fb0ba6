"""The objective of a batch: the method's summed loss as a function of what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax.data.batches import Batch, PairedBatch
from egad_jax.head.chunked import Head
from egad_jax.head.paired import PairedHead, RowLoss, row_loss
from egad_jax.losses.chunks import chunk_mask
from egad_jax.methods.method import ChunkLoss, Context, Method, TokenLoss
from egad_jax.models.model import Model
from egad_jax.teachers import Hidden, Teacher
from egad_jax.training.state import Frozen, student_params
from egad_jax.types import Metrics, Params, Stats


class Outcome(NamedTuple):
  """What a batch amounts to besides its gradient.

  Attributes:
    loss: the sum over the tokens in `mask`, scalar float32.
    stats: per token, {name: [batch, seq]}.
    metrics: of the method's own terms.
    mask: bool [batch, seq], the tokens (of paired rows: the chunks) that the loss is a sum over.
  """

  loss: jax.Array
  stats: Stats
  metrics: Metrics
  mask: jax.Array


# The batch is a Batch, or a PairedBatch for `make_paired_objective`.
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
    student: the model trained.
    teacher: where the teacher's outputs come from.
    method: what is made of them.
    make_head: token loss -> head, sharded or not.
    student_taps: layers of the student that the method's feature loss reads.
  """
  head = make_head(method.token_loss)
  label_head = None if method.serial is None else make_head(method.serial.label_loss)

  def logit_loss(
    trainable: Params, unembedding: jax.Array, hidden: jax.Array, outputs: Hidden, batch, context
  ):
    rest: tuple[Any, ...] = (unembedding, outputs.hidden, outputs.unembedding)
    rest += (batch.labels, batch.mask, {}, context)
    if method.serial is None or label_head is None:
      return head(hidden, *rest)
    loss, stats = head(method.serial.apply(trainable["method"], hidden), *rest)
    # This loss does not read the teacher's logits, so the compiler leaves their matmul out.
    label_loss, label_stats = label_head(hidden, *rest)
    return loss + label_loss, stats | label_stats

  def objective(trainable: Params, frozen: Frozen, batch: Batch, context: Context):
    outputs = teacher.outputs(frozen.teacher, batch, with_taps=True)
    params = student_params(trainable, frozen.student)
    hidden, taps = student.apply(
      params, batch.tokens, batch.positions, batch.segment_ids, taps=student_taps
    )
    loss, stats = logit_loss(
      *(trainable, student.unembedding(params), hidden, outputs, batch, context)
    )
    metrics: Metrics = {}
    if method.feature_loss is not None:
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
  """Returns `(trainable, frozen, batch, context) -> (summed loss, Outcome)` on paired rows.

  The loss is a sum over chunks and so are the statistics, [batch, C]; but the metrics "tokens" and
  "cross_entropy" are of the student's target tokens, as with every other method. "uncovered" is the
  teacher's probability that the projection cannot reach.

  Args:
    student: the model trained; reads `batch.student`.
    teacher: where the teacher's outputs come from.
    chunk_loss: the method's.
    make_head: row loss -> head, sharded or not.
  """
  head = make_head(row_loss(chunk_loss))

  def objective(trainable: Params, frozen: Frozen, batch: PairedBatch, context: Context):
    outputs = teacher.outputs(frozen.teacher, batch)
    rows = batch.student
    params = student_params(trainable, frozen.student)
    hidden, _ = student.apply(params, rows.tokens, rows.positions, rows.segment_ids)
    loss, stats = head(
      *(hidden, student.unembedding(params), outputs.hidden, outputs.unembedding),
      *(batch, context),
    )
    mask = chunk_mask(batch.student_chunks, batch.teacher_chunks)
    tokens = jnp.sum(rows.mask, dtype=jnp.float32)
    # A count of 0 stands for 1: a number of tokens is a total, also over micro-batches.
    metrics = {
      "tokens": (tokens, jnp.float32(0)),
      "cross_entropy": (jnp.sum(stats["student_nll"]), tokens),
      "uncovered": (jnp.sum(stats["uncovered"]), jnp.sum(mask, dtype=jnp.float32)),
    }
    return loss, Outcome(loss, stats, metrics, mask)

  return objective
