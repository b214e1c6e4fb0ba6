"""A `SpanLoss` on whole rows of logits: what the paired head computes by chunks."""

from __future__ import annotations

import jax.numpy as jnp

from egad_jax.losses.cross_tokenizer import largest_of_spans, likeliest_entries
from egad_jax.losses.spans import make_row
from egad_jax.methods.method import SpanLoss


def dense_span_loss(loss: SpanLoss):
  """Returns the loss of one row of logits, (loss [C], stats {name: [C]}), 0 at invalid pairs.

  Its sums over spans are segment sums over [seq, vocab], its entries are chosen at once, and its
  gradient is that of autodiff.
  """

  def of_row(
    student_logits, teacher_logits, labels, student_spans, teacher_spans, context, others=None
  ):
    row = make_row(student_logits, teacher_logits, student_spans, teacher_spans)
    others = jnp.zeros(teacher_spans.shape, int) if others is None else others
    pairs = row.pairs(labels, others, average=loss.average)
    log_p, teacher = loss.read_teacher(pairs.log_p, context)
    count, kept = loss.kept_entries(log_p.shape[-1]), None
    if count is not None:
      kept = likeliest_entries(largest_of_spans(log_p, row.valid), count)
    value, stats = loss.function(pairs, teacher, kept, context)
    zeroed = lambda x: jnp.where(row.valid, x, 0)
    return zeroed(value), {name: zeroed(x) for name, x in stats.items()}

  return of_row
