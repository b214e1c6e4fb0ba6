"""Chunks of a row, the stretches that two tokenizations of a text share, and averages over them.

A chunk is a stretch of text that both tokenizers cut out, as one token or as several. (The chunks
of `head.chunked` are something else.) Chunks are numbered from 1; each index of the sequence has
the number of the chunk that contains the token its logits predict, or 0 for none. Chunk c has index
c - 1. A row has at most C = min(seq_s, seq_t) chunks.
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
  """The tokens of one model in one row.

  Attributes:
    logits: [seq, vocab], at least float32; 0 at tokens of no valid chunk.
    chunk: int32 [seq], the index of each token's chunk; C at tokens of no valid chunk.
    counts: float [C], the number of tokens of each chunk; 0 where the chunk is not valid.
  """

  logits: jax.Array
  chunk: jax.Array
  counts: jax.Array

  def of_chunk(self, values: jax.Array) -> jax.Array:
    """Gives each token the value of its chunk, [C] -> [seq]; 1 to tokens of no chunk."""
    return jnp.append(values, jnp.ones((), values.dtype))[self.chunk]

  def total(self, values: jax.Array) -> jax.Array:
    """Sums the values of tokens over each chunk: [seq, ...] -> [C, ...]."""
    # Index C is out of range on purpose: tokens of no chunk are dropped.
    return jax.ops.segment_sum(values, self.chunk, num_segments=self.counts.shape[0])

  def log_average(self, *, temperature: float | jax.Array = 1.0, average: str) -> jax.Array:
    """Returns normalized log-probabilities of each chunk, [C, vocab]; see `chunk_log_average`."""
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
  """Both models' sides of one row.

  Attributes:
    student: the student's tokens.
    teacher: the teacher's tokens.
    valid: bool [C], true at chunks that both sides have tokens of.
  """

  student: Positions
  teacher: Positions
  valid: jax.Array

  def log_averages(
    self, *, temperature: float | jax.Array = 1.0, average: str
  ) -> tuple[jax.Array, jax.Array]:
    """Returns (log_q [C, Vs], log_p [C, Vt]), at one temperature or one per chunk [C]."""
    return (
      self.student.log_average(temperature=temperature, average=average),
      self.teacher.log_average(temperature=temperature, average=average),
    )


def chunk_mask(student_chunks: ArrayLike, teacher_chunks: ArrayLike) -> jax.Array:
  """Marks the chunks that both sides have tokens of.

  Args:
    student_chunks: int, shape [..., seq_s], the number of each token's chunk, from 1; 0 for none.
    teacher_chunks: int, shape [..., seq_t], the same for the teacher's tokens.

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
  """Returns the distribution of each chunk, the average over its tokens, as log-probabilities.

  - prob: the mean of the probabilities.
  - logprob: the mean of the log-probabilities, normalized. Without that, two equal models differ
    as soon as a chunk has two tokens (X-Token, arXiv 2605.21699, leaves it out for the teacher).
  - chain_rule: the distribution of the first token. The probability of a chunk is the probability
    of its first token times those of the tokens seen after it; normalizing cancels the latter
    factor.

  A mean of probabilities below 1e-38 counts as exp(-100), as everywhere in this package.

  Args:
    logits: float, shape [..., seq, vocab].
    chunks: int, shape [..., seq], the number of each token's chunk, from 1; 0 for none.
    temperature: temperature of the distributions before averaging; > 0.
    average: one of the above.

  Returns:
    Log-probabilities, at least float32, shape [..., seq, vocab]; chunk c is at c - 1. Values of
    chunks without tokens have no meaning.

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
  """Makes a `Row` of logits [seq_s, Vs] and [seq_t, Vt] and chunks [seq_s] and [seq_t].

  The teacher's logits are detached.
  """
  valid = _valid(student_chunks, teacher_chunks)

  def side(logits: jax.Array, chunks: jax.Array) -> Positions:
    index = _index(chunks, valid.shape[0])
    index = jnp.where(jnp.append(valid, jnp.zeros((), bool))[index], index, valid.shape[0])
    # Logits of other tokens may be NaN, which would spread to the gradient, so they go first.
    logits = jnp.where((index < valid.shape[0])[:, None], logits, 0)
    return Positions(logits, index, _counts(index, valid.shape[0]).astype(logits.dtype))

  teacher = side(jax.lax.stop_gradient(teacher_logits), teacher_chunks)
  return Row(side(student_logits, student_chunks), teacher, valid)


def log_or_floor(probabilities: jax.Array) -> jax.Array:
  """Returns log p, with `LOG_ZERO` and gradient 0 where p is 0 or too small for the dtype."""
  # exp(LOG_ZERO) is not a normal float32, so the limit for that dtype is a little higher.
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
