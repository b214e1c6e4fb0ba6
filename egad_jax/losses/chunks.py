"""Chunks of a row: what two tokenizations of one text have in common, and averages over them.

A chunk is a stretch of text that both tokenizers cut out, in one token or in several. Chunks are
numbered from 1, and each position carries the number of the chunk whose token its logits predict,
0 for none; chunk c has index c - 1. A row has room for C = min(seq_s, seq_t) chunks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import LOG_ZERO, check_logits, log_probabilities

CHUNK_AVERAGES = ("prob", "logprob", "chain_rule")


class Positions(NamedTuple):
  """One side of one row.

  Attributes:
    logits: [seq, vocab], at least float32; 0 at positions in no valid chunk.
    chunk: int32 [seq], the index of the position's chunk, C at positions in no valid chunk.
    counts: float [C], positions of each chunk; 0 where the chunk is not valid.
  """

  logits: jax.Array
  chunk: jax.Array
  counts: jax.Array

  def of_chunk(self, values: jax.Array) -> jax.Array:
    """Gives each position the value of its chunk: [C] -> [seq]; 1 in no chunk."""
    return jnp.append(values, jnp.ones((), values.dtype))[self.chunk]

  def total(self, values: jax.Array) -> jax.Array:
    """Sums positions into chunks: [seq, ...] -> [C, ...]."""
    # Index C is out of range on purpose: those positions are dropped.
    return jax.ops.segment_sum(values, self.chunk, num_segments=self.counts.shape[0])

  def log_average(self, *, temperature: float | jax.Array = 1.0, average: str) -> jax.Array:
    """Log-probabilities of each chunk, [C, vocab], normalized; see `chunk_log_average`."""
    if isinstance(temperature, jax.Array) and temperature.ndim:
      temperature = self.of_chunk(temperature)
    log_p = log_probabilities(self.logits, temperature=temperature)
    if average == "chain_rule":
      places = jnp.arange(self.chunk.shape[0])
      first = jax.ops.segment_min(places, self.chunk, num_segments=self.counts.shape[0])
      return log_p[jnp.minimum(first, places.shape[0] - 1)]
    counts = jnp.maximum(self.counts, 1)[:, None]
    if average == "logprob":
      return jax.nn.log_softmax(self.total(log_p) / counts, axis=-1)
    return log_or_floor(self.total(jnp.exp(log_p)) / counts)


class Row(NamedTuple):
  """Both sides of one row, and which of its chunks count, bool [C]."""

  student: Positions
  teacher: Positions
  valid: jax.Array

  def log_averages(
    self, *, temperature: float | jax.Array = 1.0, average: str
  ) -> tuple[jax.Array, jax.Array]:
    """(log_q [C, Vs], log_p [C, Vt]) of the chunks, at one temperature or one per chunk [C]."""
    return (
      self.student.log_average(temperature=temperature, average=average),
      self.teacher.log_average(temperature=temperature, average=average),
    )


def chunk_mask(student_chunks: ArrayLike, teacher_chunks: ArrayLike) -> jax.Array:
  """Which chunks both sides have positions of.

  Args:
    student_chunks: int, shape [..., seq_s], chunk of each position, from 1; 0 for none.
    teacher_chunks: int, shape [..., seq_t].

  Returns:
    bool, shape [..., C], C = min(seq_s, seq_t); chunk c is at c - 1.

  Raises:
    TypeError: chunks that are not integers.
    ValueError: leading axes that differ.

  >>> chunk_mask(jnp.array([1, 1, 2, 0]), jnp.array([1, 3, 0])).tolist()
  [True, False, False]
  """
  student_chunks, teacher_chunks = check_chunks(student_chunks, teacher_chunks)
  return jnp.vectorize(_valid, signature="(s),(t)->(c)")(student_chunks, teacher_chunks)


def chunk_log_average(
  logits: ArrayLike, chunks: ArrayLike, *, temperature: float = 1.0, average: str = "prob"
) -> jax.Array:
  """The distribution of each chunk: the average over its positions, as log-probabilities.

  - prob: the mean of the probabilities.
  - logprob: the mean of the log-probabilities, normalized. Without that, two equal models differ
    as soon as a chunk has two tokens (X-Token, arXiv 2605.21699, leaves it out for the teacher).
  - chain_rule: that of the first position. The probability of a chunk is that of its first token
    times those of the tokens seen after it; normalizing cancels the latter factor.

  A mean of probabilities below 1e-38 counts as exp(-100), as everywhere in this package.

  Args:
    logits: float, shape [..., seq, vocab].
    chunks: int, shape [..., seq], from 1; 0 for none.
    temperature: positive.
    average: one of the above.

  Returns:
    At least float32, shape [..., seq, vocab]; chunk c is at c - 1. What it holds for chunks without
    positions has no meaning.

  Raises:
    TypeError: wrong dtypes.
    ValueError: shapes that do not match or an unknown `average`.

  >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
  >>> both = jnp.array([1, 1])
  >>> [round(float(p), 3) for p in jnp.exp(chunk_log_average(logits, both))[0]]
  [0.7, 0.3]
  >>> [round(float(p), 3) for p in jnp.exp(chunk_log_average(logits, both, average="logprob"))[0]]
  [0.75, 0.25]
  """
  check_average(average)
  logits = check_logits("logits", logits)
  chunks, _ = check_chunks(chunks, chunks)
  if chunks.shape != logits.shape[:-1]:
    raise ValueError(f"chunks must have shape {logits.shape[:-1]}, got {chunks.shape}.")

  def row(logits: jax.Array, chunks: jax.Array) -> jax.Array:
    side = make_row(logits, logits, chunks, chunks).student
    return side.log_average(temperature=temperature, average=average)

  return jnp.vectorize(row, signature="(s,v),(s)->(s,v)")(logits, chunks)


def make_row(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  student_chunks: jax.Array,
  teacher_chunks: jax.Array,
) -> Row:
  """Puts one row together: logits [seq_s, Vs] and [seq_t, Vt], chunks [seq_s] and [seq_t]."""
  valid = _valid(student_chunks, teacher_chunks)

  def side(logits: jax.Array, chunks: jax.Array) -> Positions:
    index = _index(chunks, valid.shape[0])
    index = jnp.where(jnp.append(valid, jnp.zeros((), bool))[index], index, valid.shape[0])
    # Before any maths: what lies outside may be NaN, also in the gradient.
    logits = jnp.where((index < valid.shape[0])[:, None], logits, 0)
    return Positions(logits, index, _counts(index, valid.shape[0]).astype(logits.dtype))

  teacher = side(jax.lax.stop_gradient(teacher_logits), teacher_chunks)
  return Row(side(student_logits, student_chunks), teacher, valid)


def log_or_floor(probabilities: jax.Array) -> jax.Array:
  """log p, with `LOG_ZERO` and gradient 0 where p is 0 or too small for the type."""
  # exp(LOG_ZERO) is no normal float32, so that type draws its line a little higher.
  smallest = max(float(jnp.finfo(probabilities.dtype).tiny), math.exp(LOG_ZERO))
  positive = probabilities > smallest
  return jnp.where(positive, jnp.log(jnp.where(positive, probabilities, 1)), LOG_ZERO)


def check_chunks(
  student_chunks: ArrayLike, teacher_chunks: ArrayLike
) -> tuple[jax.Array, jax.Array]:
  """Returns both as arrays; TypeError unless integers, ValueError unless leading axes agree."""
  chunks = jnp.asarray(student_chunks), jnp.asarray(teacher_chunks)
  for name, array in zip(("student_chunks", "teacher_chunks"), chunks, strict=True):
    if not jnp.issubdtype(array.dtype, jnp.integer):
      raise TypeError(f"{name} must be integers, got {array.dtype}.")
  if not chunks[0].ndim or chunks[0].shape[:-1] != chunks[1].shape[:-1]:
    raise ValueError(
      "student_chunks [..., seq_s] and teacher_chunks [..., seq_t] must have the same leading axes,"
      f" got {chunks[0].shape} and {chunks[1].shape}."
    )
  return chunks


def check_average(average: str) -> None:
  """Raises ValueError unless `average` is one of `CHUNK_AVERAGES`."""
  if average not in CHUNK_AVERAGES:
    raise ValueError(f"chunk_average must be one of {', '.join(CHUNK_AVERAGES)}, got {average!r}.")


def _valid(student_chunks: jax.Array, teacher_chunks: jax.Array) -> jax.Array:
  size = min(student_chunks.shape[0], teacher_chunks.shape[0])
  sides = (_counts(_index(chunks, size), size) for chunks in (student_chunks, teacher_chunks))
  return jnp.logical_and(*(counts > 0 for counts in sides))


def _index(chunks: jax.Array, size: int) -> jax.Array:
  return jnp.where((chunks >= 1) & (chunks <= size), chunks - 1, size)


def _counts(index: jax.Array, size: int) -> jax.Array:
  return jax.ops.segment_sum(jnp.ones_like(index), index, num_segments=size)
