"""Held-out evaluation of student and teacher on the same tokens, with the method's guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egad_jax.data.batches import AnyBatch
from egad_jax.files.storage import finite_or_none
from egad_jax.head.inputs import Head
from egad_jax.head.paired import PairedHead
from egad_jax.head.teacher import ENTROPY_BOUNDS
from egad_jax.losses.divergences import forward_kl
from egad_jax.losses.entropy import token_entropy
from egad_jax.losses.spans import SpanPairs
from egad_jax.methods.method import Context, SpanLoss, TokenLoss
from egad_jax.models.model import Model
from egad_jax.teachers import Teacher
from egad_jax.training.objective import apply_head, loss_mask
from egad_jax.training.state import Frozen, student_params
from egad_jax.types import Params, Stats

NUM_BINS = 32
# Statistics that are averaged over the tokens of each bin of teacher entropy.
BINNED = ("position", "weight", "temperature", "hard", "forward_kl")
# exp overflows float64 a little above this.
_LARGEST_EXPONENT = 709.0
MEASURED = ("cross_entropy", "teacher_cross_entropy", "forward_kl", "agreement")


def evaluation_loss(loss: TokenLoss | SpanLoss) -> TokenLoss | SpanLoss:
  """A method's loss, with the statistics that an evaluation reports added to its own.

  Forward KL and cross-entropies are at temperature 1, whatever temperature the method trains at.
  Statistics of a `SpanLoss` are per span pair; a model's cross-entropy is then the sum over its own
  tokens of the span.
  """
  return _of_tokens(loss) if isinstance(loss, TokenLoss) else _of_span_pairs(loss)


def _of_tokens(loss: TokenLoss) -> TokenLoss:
  def function(student_logits, teacher_logits, labels, extras, context):
    value, stats = loss.function(student_logits, teacher_logits, labels, extras, context)
    # A comparison, because a gather of one column would be a separate pass over the logits.
    is_label = jnp.arange(student_logits.shape[-1])[None, :] == labels[:, None]

    def cross_entropy(logits):
      label_logit = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
      return jax.nn.logsumexp(logits, axis=-1) - label_logit

    entropy = extras.get("teacher_entropy")
    entropy = token_entropy(teacher_logits) if entropy is None else entropy
    agree = jnp.argmax(student_logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1)
    return value, stats | {
      "cross_entropy": cross_entropy(student_logits),
      "teacher_cross_entropy": cross_entropy(teacher_logits),
      "forward_kl": forward_kl(student_logits, teacher_logits),
      "agreement": agree.astype(jnp.float32),
      "student_entropy": token_entropy(student_logits),
      "teacher_entropy": entropy,
      "position": context.state.entropy.position(entropy),
    }

  return TokenLoss(function)


def _of_span_pairs(loss: SpanLoss) -> SpanLoss:
  def function(pairs: SpanPairs, teacher: Stats, kept: jax.Array | None, context: Context):
    value, stats = loss.function(pairs, teacher, kept, context)
    return value, stats | {
      "cross_entropy": stats["student_nll"],
      "teacher_cross_entropy": pairs.teacher_nll,
      "position": context.state.entropy.position(stats["teacher_entropy"]),
    }

  return loss._replace(function=function)


def make_statistics(
  *, student: Model, teacher: Teacher, head: Head | PairedHead
) -> Callable[..., dict[str, jax.Array]]:
  """Returns `(trainable, frozen, batch, context) -> {name: f32[batch, seq]}`.

  For paired rows the statistics are per span pair.

  Args:
    student: the model to evaluate.
    teacher: the source of the teacher's outputs.
    head: a distillation head made from `evaluation_loss` or a method's own loss; only its forward
      pass runs here.
  """

  def statistics(trainable: Params, frozen: Frozen, batch: AnyBatch, context: Context):
    outputs = teacher.outputs(frozen.teacher, batch)
    params = student_params(trainable, frozen.student)
    rows = batch.student_side
    hidden, _ = student.apply(params, rows.tokens, rows.positions, rows.segment_ids)
    return apply_head(
      head,
      hidden,
      unembedding=student.unembedding(params),
      outputs=outputs,
      batch=batch,
      context=context,
    )[1]

  return statistics


def entropy_edges(vocab_size: int) -> np.ndarray:
  """Edges, float32 [NUM_BINS + 1], of the bins of teacher entropy in nats, 0 to log(vocab_size).

  The edges grow quadratically, because most tokens have an entropy below one nat.
  """
  return (math.log(vocab_size) * np.linspace(0, 1, NUM_BINS + 1) ** 2).astype(np.float32)


def make_sums(
  statistics: Callable[..., dict[str, jax.Array]], vocab_size: int
) -> Callable[..., dict[str, jax.Array]]:
  """Returns `(trainable, frozen, batch, context) -> {name: float32 sum over the batch}`.

  The sums are scalars, but for those that begin with "bin_", which have the shape [NUM_BINS].

  Args:
    statistics: from `make_statistics`.
    vocab_size: entries of the teacher's vocabulary, which bound the entropy.
  """
  edges = jnp.asarray(entropy_edges(vocab_size)[1:-1])

  def sums(trainable, frozen, batch: AnyBatch, context: Context):
    stats = statistics(trainable, frozen, batch, context)
    student, teacher, mask = batch.student_side, batch.teacher_side, loss_mask(batch)

    def total(x):
      return jnp.sum(x, where=mask)

    bins = jnp.searchsorted(edges, stats["teacher_entropy"], side="right")
    by_bin = jnp.where(mask, bins, NUM_BINS).reshape(-1)

    def binned(x):
      return jnp.zeros(NUM_BINS).at[by_bin].add(x.reshape(-1), mode="drop")

    return {
      "count": total(jnp.ones(mask.shape)),
      "tokens": jnp.sum(student.mask, dtype=jnp.float32),
      "teacher_tokens": jnp.sum(teacher.mask, dtype=jnp.float32),
      **{name: total(stats[name]) for name in (*MEASURED, "student_entropy", "teacher_entropy")},
      **{name: total(stats[name]) for name in ENTROPY_BOUNDS if name in stats},
      "bin_count": binned(jnp.ones(mask.shape)),
      **{f"bin_{name}": binned(stats[name]) for name in BINNED},
    }

  return sums


def evaluate(
  sums: Callable[..., dict[str, jax.Array]],
  batches: Iterable[AnyBatch],
  *,
  vocab_size: int,
  num_bytes: int,
) -> dict[str, Any]:
  """Averages over all held-out tokens.

  With two tokenizers each model's cross-entropy is per token of its own, bits per byte are over
  the same bytes, and everything else is per aligned span.

  Args:
    sums: `batch -> sums`, from `make_sums` with its other arguments bound.
    batches: the held-out batches, on the devices.
    vocab_size: entries of the teacher's vocabulary.
    num_bytes: bytes of text that the batches' targets stand for.

  Returns:
    {"tokens", "student": {...}, "teacher": {...}, "entropy_bins": {...}}, see docs/files.md. A
    value that is not finite is None.
  """
  total: dict[str, Any] = {}
  for batch in batches:
    # Batches are added up in float64, on the host, because float32 would lose digits.
    part = {k: np.asarray(v, np.float64) for k, v in jax.device_get(sums(batch)).items()}
    total = {k: v + total.get(k, 0) for k, v in part.items()}
  count = max(total["count"], 1)

  def report(cross_entropy, tokens, entropy, kl, agreement):
    nats = cross_entropy / max(tokens, 1)
    return {
      "cross_entropy": nats,
      "perplexity": math.exp(nats) if nats < _LARGEST_EXPONENT else math.inf,
      "bits_per_byte": cross_entropy / math.log(2) / max(num_bytes, 1),
      "forward_kl": kl / count,
      "agreement": agreement / count,
      "entropy": entropy / count,
    }

  # A source that does not know the teacher's entropy gives bounds of it.
  bounds = {
    name.removeprefix("teacher_"): total[name] / count for name in ENTROPY_BOUNDS if name in total
  }
  in_bins = total["bin_count"]
  result = {
    "tokens": int(total["tokens"]),
    "student": report(
      total["cross_entropy"],
      total["tokens"],
      total["student_entropy"],
      total["forward_kl"],
      total["agreement"],
    ),
    "teacher": report(
      total["teacher_cross_entropy"],
      total["teacher_tokens"],
      total["teacher_entropy"],
      0.0,
      count,
    )
    | bounds,
    "entropy_bins": {
      "edges": [float(x) for x in entropy_edges(vocab_size)],
      "count": [int(n) for n in in_bins],
      **{
        name: [
          float(x / n) if n else None for x, n in zip(total[f"bin_{name}"], in_bins, strict=True)
        ]
        for name in BINNED
      },
    },
  }
  return finite_or_none(result)
