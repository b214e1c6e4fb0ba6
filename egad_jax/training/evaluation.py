"""Held-out evaluation of student and teacher on the same tokens, with the method's guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egad_jax.data.batches import AnyBatch, Batch, PairedBatch
from egad_jax.files.storage import finite_or_none
from egad_jax.head.inputs import Head
from egad_jax.head.paired import PairedHead, RowLoss, row_loss
from egad_jax.head.teacher import ENTROPY_BOUNDS
from egad_jax.losses.chunks import chunk_mask
from egad_jax.losses.divergences import forward_kl
from egad_jax.losses.entropy import token_entropy
from egad_jax.methods.method import ChunkLoss, Context, Method
from egad_jax.models.model import Model
from egad_jax.teachers import Hidden, Teacher
from egad_jax.training.state import Frozen, student_params
from egad_jax.types import Params

NUM_BINS = 32
# Statistics that are averaged over the tokens of each bin of teacher entropy.
BINNED = ("position", "weight", "temperature", "hard", "forward_kl")
# exp overflows float64 a little above this.
_LARGEST_EXPONENT = 709.0
MEASURED = ("cross_entropy", "teacher_cross_entropy", "forward_kl", "agreement")


def evaluation_token_loss(method: Method) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
  """The method's `token_loss`, with the statistics that an evaluation reports added to its own.

  Forward KL and cross-entropies are at temperature 1, whatever temperature the method trains at.
  """

  def token_loss(student_logits, teacher_logits, labels, extras, context):
    loss, stats = method.token_loss(student_logits, teacher_logits, labels, extras, context)
    # A comparison, because a gather of one column would be a separate pass over the logits.
    is_label = jnp.arange(student_logits.shape[-1])[None, :] == labels[:, None]

    def cross_entropy(logits):
      label_logit = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
      return jax.nn.logsumexp(logits, axis=-1) - label_logit

    entropy = extras.get("teacher_entropy")
    entropy = token_entropy(teacher_logits) if entropy is None else entropy
    agree = jnp.argmax(student_logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1)
    return loss, stats | {
      "cross_entropy": cross_entropy(student_logits),
      "teacher_cross_entropy": cross_entropy(teacher_logits),
      "forward_kl": forward_kl(student_logits, teacher_logits),
      "agreement": agree.astype(jnp.float32),
      "student_entropy": token_entropy(student_logits),
      "teacher_entropy": entropy,
      "position": context.state.entropy.position(entropy),
    }

  return token_loss


def evaluation_row_loss(chunk_loss: ChunkLoss) -> RowLoss:
  """`evaluation_token_loss` for a student and a teacher with different tokenizers.

  Statistics are per aligned chunk. A model's cross-entropy is the sum over its own tokens of the
  chunk.
  """
  method_loss = row_loss(chunk_loss)

  def loss(student_logits, teacher_logits, row: PairedBatch, context: Context):
    value, stats = method_loss(student_logits, teacher_logits, row, context)
    log_p = jax.nn.log_softmax(teacher_logits, axis=-1)
    nats = -jnp.take_along_axis(log_p, row.teacher.labels[:, None], axis=-1)[:, 0]
    by_chunk = jnp.zeros(1 + value.size).at[row.teacher_chunks].add(nats)
    return value, stats | {
      "cross_entropy": stats["student_nll"],
      "teacher_cross_entropy": by_chunk[1:],
      "position": context.state.entropy.position(stats["teacher_entropy"]),
    }

  return loss


def make_token_statistics(
  *, student: Model, teacher: Teacher, head: Head
) -> Callable[..., dict[str, jax.Array]]:
  """Returns `(trainable, frozen, batch, context) -> {name: f32[batch, seq]}`.

  Args:
    student: the model to evaluate.
    teacher: the source of the teacher's outputs.
    head: a distillation head made from `evaluation_token_loss` or a method's `token_loss`; only its
      forward pass runs here.
  """

  def statistics(trainable: Params, frozen: Frozen, batch: Batch, context: Context):
    outputs = teacher.outputs(frozen.teacher, batch)
    params = student_params(trainable, frozen.student)
    hidden, _ = student.apply(params, batch.tokens, batch.positions, batch.segment_ids)
    unembedding = student.unembedding(params)
    return head.of_outputs(hidden, unembedding, outputs, batch.labels, batch.mask, {}, context)[1]

  return statistics


def make_chunk_statistics(
  *, student: Model, teacher: Teacher, head: PairedHead
) -> Callable[..., dict[str, jax.Array]]:
  """`make_token_statistics` for paired rows: statistics `{name: f32[batch, C]}` of the chunks."""

  def statistics(trainable: Params, frozen: Frozen, batch: PairedBatch, context: Context):
    outputs = teacher.outputs(frozen.teacher, batch)
    assert isinstance(outputs, Hidden)
    params = student_params(trainable, frozen.student)
    rows = batch.student
    hidden, _ = student.apply(params, rows.tokens, rows.positions, rows.segment_ids)
    unembedding = student.unembedding(params)
    return head(hidden, unembedding, outputs.hidden, outputs.unembedding, batch, context)[1]

  return statistics


def places_of(batch: AnyBatch) -> tuple[Batch, Batch, jax.Array]:
  """Returns (student's side, teacher's side, mask of the valid statistics).

  The mask is bool [batch, seq], over tokens for a `Batch` and over chunks for a `PairedBatch`.
  """
  if isinstance(batch, Batch):
    mask = batch.mask
  else:
    mask = chunk_mask(batch.student_chunks, batch.teacher_chunks)
  return batch.student_side, batch.teacher_side, mask


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
    statistics: from `make_token_statistics` or `make_chunk_statistics`.
    vocab_size: entries of the teacher's vocabulary, which bound the entropy.
  """
  edges = jnp.asarray(entropy_edges(vocab_size)[1:-1])

  def sums(trainable, frozen, batch: AnyBatch, context: Context):
    stats = statistics(trainable, frozen, batch, context)
    student, teacher, mask = places_of(batch)

    def total(x):
      return jnp.sum(x, where=mask)

    bins = jnp.searchsorted(edges, stats["teacher_entropy"], side="right")
    by_bin = jnp.where(mask, bins, NUM_BINS).reshape(-1)

    def binned(x):
      return jnp.zeros(NUM_BINS).at[by_bin].add(x.reshape(-1), mode="drop")

    return {
      "places": total(jnp.ones(mask.shape)),
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
  the same bytes, and everything else is per aligned chunk.

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
  places = max(total["places"], 1)

  def report(cross_entropy, tokens, entropy, kl, agreement):
    nats = cross_entropy / max(tokens, 1)
    return {
      "cross_entropy": nats,
      "perplexity": math.exp(nats) if nats < _LARGEST_EXPONENT else math.inf,
      "bits_per_byte": cross_entropy / math.log(2) / max(num_bytes, 1),
      "forward_kl": kl / places,
      "agreement": agreement / places,
      "entropy": entropy / places,
    }

  # A source that does not know the teacher's entropy gives bounds of it.
  bounds = {
    name.removeprefix("teacher_"): total[name] / places for name in ENTROPY_BOUNDS if name in total
  }
  count = total["bin_count"]
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
      places,
    )
    | bounds,
    "entropy_bins": {
      "edges": [float(x) for x in entropy_edges(vocab_size)],
      "count": [int(n) for n in count],
      **{
        name: [
          float(x / n) if n else None for x, n in zip(total[f"bin_{name}"], count, strict=True)
        ]
        for name in BINNED
      },
    },
  }
  return finite_or_none(result)
