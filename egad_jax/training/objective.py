"""The objective of a batch: the method's summed loss as a function of the trained parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax.data.batches import AnyBatch, Batch
from egad_jax.head.inputs import Head
from egad_jax.head.paired import PairedHead
from egad_jax.losses.spans import span_mask
from egad_jax.methods.method import Context, Method, SpanLoss, TokenLoss
from egad_jax.models.model import Model
from egad_jax.teachers import Hidden, Outputs, Teacher
from egad_jax.training.state import Frozen, student_params
from egad_jax.types import Metrics, Params, Stats

MakeHead = Callable[[TokenLoss | SpanLoss], Head | PairedHead]
"""A method's loss -> the distillation head of its kind, sharded or not."""


class Outcome(NamedTuple):
  """The results of an objective besides its gradient.

  Attributes:
    loss: float32 scalar, the sum over the tokens in `mask`.
    stats: statistics per token, {name: float32 [batch, seq]}.
    metrics: {name: (sum, count)}, metrics that are no average of `stats`; {} for none.
    mask: bool [batch, seq], the tokens (for paired rows, the span pairs) that are summed over.
  """

  loss: jax.Array
  stats: Stats
  metrics: Metrics
  mask: jax.Array


# (trainable, frozen, batch, context) -> (summed loss, outcome). The batch is a `PairedBatch` for a
# method with a `SpanLoss`, else a `Batch`.
Objective = Callable[[Params, Frozen, Any, Context], tuple[jax.Array, Outcome]]


def loss_mask(batch: AnyBatch) -> jax.Array:
  """Marks what a loss is a sum over, bool [batch, seq]: target tokens, or valid span pairs."""
  if isinstance(batch, Batch):
    return batch.mask
  return span_mask(batch.student_spans, batch.teacher_spans)


def apply_head(
  head: Head | PairedHead,
  hidden: jax.Array,
  *,
  unembedding: jax.Array,
  outputs: Outputs,
  batch: AnyBatch,
  context: Context,
) -> tuple[jax.Array, Stats]:
  """Returns the summed loss of a batch and its statistics per token or span pair."""
  if isinstance(batch, Batch):
    assert isinstance(head, Head)
    return head.of_outputs(hidden, unembedding, outputs, batch.labels, batch.mask, {}, context)
  # An experiment with another kind of outputs is refused when it is built.
  assert isinstance(outputs, Hidden)
  assert not isinstance(head, Head)
  return head(hidden, unembedding, outputs.hidden, outputs.unembedding, batch, context)


def make_objective(
  *,
  student: Model,
  teacher: Teacher,
  method: Method,
  make_head: MakeHead,
  student_taps: tuple[int, ...] = (),
) -> Objective:
  """Returns `(trainable, frozen, batch, context) -> (summed loss, Outcome)`.

  For paired rows the loss is a sum over span pairs, and the statistics are per span pair. The
  metrics "tokens" and "cross_entropy" are over the student's target tokens all the same, and
  "uncovered" is the teacher's probability mass that the projection does not cover.

  Args:
    student: the model to train.
    teacher: the source of the teacher's outputs.
    method: the distillation method.
    make_head: the method's loss -> distillation head, sharded or not.
    student_taps: student layers, counted from 1, that the method's feature loss reads; () for none.
  """
  head = make_head(method.loss)
  label_head = None if method.serial is None else make_head(TokenLoss(method.serial.label_loss))

  def logit_loss(
    trainable: Params, unembedding: jax.Array, hidden: jax.Array, outputs: Outputs, batch, context
  ):
    of_head = functools.partial(
      apply_head,
      unembedding=unembedding,
      outputs=outputs,
      batch=batch,
      context=context,
    )
    if method.serial is None or label_head is None:
      return of_head(head, hidden)
    loss, stats = of_head(head, method.serial.apply(trainable["method"], hidden))
    # This loss does not read the teacher's logits, so the compiler leaves their matmul out.
    label_loss, label_stats = of_head(label_head, hidden)
    return loss + label_loss, stats | label_stats

  def objective(trainable: Params, frozen: Frozen, batch: AnyBatch, context: Context):
    outputs = teacher.outputs(frozen.teacher, batch, with_taps=True)
    params = student_params(trainable, frozen.student)
    rows, mask = batch.student_side, loss_mask(batch)
    hidden, taps = student.apply(
      params, rows.tokens, rows.positions, rows.segment_ids, taps=student_taps
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
        trainable["method"], taps, outputs.taps, stats, mask, context
      )
      loss = loss + feature
      metrics = metrics | {"feature_loss": (feature, jnp.sum(mask, dtype=jnp.float32))}
    if isinstance(method.loss, SpanLoss):
      metrics = metrics | _metrics_of_tokens(stats, rows, mask)
    return loss, Outcome(loss, stats, metrics, mask)

  return objective


def _metrics_of_tokens(stats: Stats, rows: Batch, mask: jax.Array) -> Metrics:
  """Metrics of paired rows that are not averages over span pairs, or are X-Token's own."""
  tokens = jnp.sum(rows.mask, dtype=jnp.float32)
  # A count of 0 is read as 1, so that the number of tokens adds up over micro-batches.
  return {
    "tokens": (tokens, jnp.float32(0)),
    "cross_entropy": (jnp.sum(stats["student_nll"]), tokens),
    "uncovered": (jnp.sum(stats["uncovered"]), jnp.sum(mask, dtype=jnp.float32)),
  }
