"""Spans of a row, the stretches that two tokenizations of a text share, and averages over them.

A span is a stretch of text that both tokenizers cut out, as one token or as several; its two
tokenizations are a span pair. Spans are numbered from 1; each index of the sequence has the number
of the span that contains the token its logits predict, or 0 for none. Span c has index c - 1. A row
has at most C = min(seq_s, seq_t) spans.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import (
  LOG_ZERO,
  check_logits,
  label_value,
  log_probabilities,
)

SPAN_AVERAGES = ("prob", "logprob", "chain_rule")

LogAverage = Callable[[float | jax.Array], jax.Array]
"""Temperature, a number or one per span [...] -> log-probabilities of each span, [..., vocab]."""


class SpanPairs(NamedTuple):
  """What a loss reads of span pairs; at pairs that are not `valid` the values have no meaning.

  Attributes:
    q: the student's distributions as a function of the temperature, their probabilities.
    log_q: the same as log-probabilities, see `span_log_average`.
    log_p: the teacher's distributions, likewise; detached.
    student_nll: float [...], minus the labels' log-probabilities, summed over the student's tokens.
    teacher_nll: float [...], the same for the teacher; detached.
    student_tokens: float [...], the number of the student's tokens; 0 if not valid.
    teacher_tokens: float [...], the number of the teacher's tokens; 0 if not valid.
    valid: bool [...], true at pairs that both sides have tokens of.
  """

  q: Callable[[float | jax.Array], jax.Array]
  log_q: LogAverage
  log_p: LogAverage
  student_nll: jax.Array
  teacher_nll: jax.Array
  student_tokens: jax.Array
  teacher_tokens: jax.Array
  valid: jax.Array


class Positions(NamedTuple):
  """The tokens of one model in one row.

  Attributes:
    logits: [seq, vocab], at least float32; 0 at tokens of no valid span.
    span: int32 [seq], the index of each token's span; C at tokens of no valid span.
    counts: float [C], the number of tokens of each span; 0 where the span is not valid.
  """

  logits: jax.Array
  span: jax.Array
  counts: jax.Array

  def of_span(self, values: jax.Array) -> jax.Array:
    """Gives each token the value of its span, [C] -> [seq]; 1 to tokens of no span."""
    return jnp.append(values, jnp.ones((), values.dtype))[self.span]

  def total(self, values: jax.Array) -> jax.Array:
    """Sums the values of tokens over each span: [seq, ...] -> [C, ...]."""
    # Index C is out of range on purpose: tokens of no span are dropped.
    return jax.ops.segment_sum(values, self.span, num_segments=self.counts.shape[0])

  def log_average(self, *, temperature: float | jax.Array = 1.0, average: str) -> jax.Array:
    """Returns normalized log-probabilities of each span, [C, vocab]; see `span_log_average`."""
    if isinstance(temperature, jax.Array) and temperature.ndim:
      temperature = self.of_span(temperature)
    log_p = log_probabilities(self.logits, temperature=temperature)
    if average == "chain_rule":
      positions = jnp.arange(self.span.shape[0])
      first = jax.ops.segment_min(positions, self.span, num_segments=self.counts.shape[0])
      # A span without tokens has the largest integer here, which reads the last token.
      return log_p.at[first].get(mode="clip")
    return log_mean(self.total(averaged(log_p, average)), self.counts, average)

  def nll(self, labels: jax.Array) -> jax.Array:
    """Returns minus the log-probabilities of labels [seq], summed over each span: [C]."""
    return self.total(-label_value(log_probabilities(self.logits), labels))


class Row(NamedTuple):
  """Both models' sides of one row.

  Attributes:
    student: the student's tokens.
    teacher: the teacher's tokens.
    valid: bool [C], true at spans that both sides have tokens of.
  """

  student: Positions
  teacher: Positions
  valid: jax.Array

  def log_averages(
    self, *, temperature: float | jax.Array = 1.0, average: str
  ) -> tuple[jax.Array, jax.Array]:
    """Returns (log_q [C, Vs], log_p [C, Vt]), at one temperature or one per span [C]."""
    return (
      self.student.log_average(temperature=temperature, average=average),
      self.teacher.log_average(temperature=temperature, average=average),
    )

  def pairs(
    self, student_labels: jax.Array, teacher_labels: jax.Array, *, average: str
  ) -> SpanPairs:
    """Returns the span pairs [C] of the row, with labels [seq_s] and [seq_t]."""
    return SpanPairs(
      q=lambda t: jnp.exp(self.student.log_average(temperature=t, average=average)),
      log_q=lambda t: self.student.log_average(temperature=t, average=average),
      log_p=lambda t: self.teacher.log_average(temperature=t, average=average),
      student_nll=self.student.nll(student_labels),
      teacher_nll=self.teacher.nll(teacher_labels),
      student_tokens=self.student.counts,
      teacher_tokens=self.teacher.counts,
      valid=self.valid,
    )


def span_mask(student_spans: ArrayLike, teacher_spans: ArrayLike) -> jax.Array:
  """Marks the spans that both sides have tokens of.

  Args:
    student_spans: int, shape [..., seq_s], the number of each token's span, from 1; 0 for none.
    teacher_spans: int, shape [..., seq_t], the same for the teacher's tokens.

  Returns:
    bool, shape [..., C], C = min(seq_s, seq_t); span c is at c - 1.

  Raises:
    TypeError: spans that are not integers.
    ValueError: leading axes that differ.

  >>> span_mask(jnp.array([1, 1, 2, 0]), jnp.array([1, 3, 0])).tolist()
  [True, False, False]
  """
  student_spans, teacher_spans = check_spans(student_spans, teacher_spans)
  return jnp.vectorize(_valid, signature="(s),(t)->(c)")(student_spans, teacher_spans)


def span_log_average(
  logits: ArrayLike, spans: ArrayLike, *, temperature: float = 1.0, average: str = "prob"
) -> jax.Array:
  """Returns the distribution of each span, the average over its tokens, as log-probabilities.

  - prob: the mean of the probabilities.
  - logprob: the mean of the log-probabilities, normalized. Without that, two equal models differ
    as soon as a span has two tokens (X-Token, arXiv 2605.21699, leaves it out for the teacher).
  - chain_rule: the distribution of the first token. The probability of a span is the probability
    of its first token times those of the tokens seen after it; normalizing cancels the latter
    factor.

  A mean of probabilities below 1e-38 counts as exp(-100), as everywhere in this package.

  Args:
    logits: float, shape [..., seq, vocab].
    spans: int, shape [..., seq], the number of each token's span, from 1; 0 for none.
    temperature: temperature of the distributions before averaging; > 0.
    average: one of the above.

  Returns:
    Log-probabilities, at least float32, shape [..., seq, vocab]; span c is at c - 1. Values of
    spans without tokens have no meaning.

  Raises:
    TypeError: wrong dtypes.
    ValueError: shapes that do not match or an unknown `average`.

  >>> logits = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
  >>> both = jnp.array([1, 1])
  >>> [round(float(p), 3) for p in jnp.exp(span_log_average(logits, both))[0]]
  [0.7, 0.3]
  >>> [round(float(p), 3) for p in jnp.exp(span_log_average(logits, both, average="logprob"))[0]]
  [0.75, 0.25]
  """
  check_average(average)
  logits = check_logits("logits", logits)
  spans, _ = check_spans(spans, spans)
  if spans.shape != logits.shape[:-1]:
    raise ValueError(f"spans must have shape {logits.shape[:-1]}, got {spans.shape}.")

  def row(logits: jax.Array, spans: jax.Array) -> jax.Array:
    side = make_row(logits, logits, spans, spans).student
    return side.log_average(temperature=temperature, average=average)

  return jnp.vectorize(row, signature="(s,v),(s)->(s,v)")(logits, spans)


def make_row(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  student_spans: jax.Array,
  teacher_spans: jax.Array,
) -> Row:
  """Makes a `Row` of logits [seq_s, Vs] and [seq_t, Vt] and spans [seq_s] and [seq_t].

  The teacher's logits are detached.
  """
  valid = _valid(student_spans, teacher_spans)

  def side(logits: jax.Array, spans: jax.Array) -> Positions:
    index = _index(spans, valid.shape[0])
    index = jnp.where(jnp.append(valid, jnp.zeros((), bool))[index], index, valid.shape[0])
    # Logits of other tokens may be NaN, which would spread to the gradient, so they go first.
    logits = jnp.where((index < valid.shape[0])[:, None], logits, 0)
    return Positions(logits, index, _counts(index, valid.shape[0]).astype(logits.dtype))

  teacher = side(jax.lax.stop_gradient(teacher_logits), teacher_spans)
  return Row(side(student_logits, student_spans), teacher, valid)


def averaged(log_p: jax.Array, average: str) -> jax.Array:
  """Returns what of tokens' log-probabilities is summed over a span: these or probabilities."""
  return log_p if average == "logprob" else jnp.exp(log_p)


def log_mean(total: jax.Array, counts: jax.Array, average: str) -> jax.Array:
  """Returns log-probabilities [..., vocab] of spans from sums of `averaged` tokens, same shape.

  Args:
    total: the sums over the tokens of each span.
    counts: float [...], the number of tokens of each span.
    average: "prob" or "logprob".
  """
  mean = total / jnp.maximum(counts, 1)[..., None]
  return jax.nn.log_softmax(mean, axis=-1) if average == "logprob" else log_or_floor(mean)


@jax.custom_jvp
def log_or_floor(probabilities: jax.Array) -> jax.Array:
  """Returns log p, with `LOG_ZERO` and gradient 0 where p is 0 or too small for the dtype."""
  smallest = _smallest(probabilities.dtype)
  log = jnp.log(jnp.maximum(probabilities, smallest))
  # The logarithms are compared: a comparison of p would be written to memory by the TPU compiler,
  # which then does not fuse the logarithm with what makes p. The margin is for their rounding.
  return jnp.where(log > (1 - 1e-6) * math.log(smallest), log, LOG_ZERO)


@log_or_floor.defjvp
def _log_or_floor_jvp(primals, tangents):
  (probabilities,), (tangent,) = primals, tangents
  log = log_or_floor(probabilities)
  slope = 1 / jnp.maximum(probabilities, _smallest(probabilities.dtype))
  return log, jnp.where(log > LOG_ZERO, slope, 0) * tangent


def _smallest(dtype: Any) -> float:
  # exp(LOG_ZERO) is not a normal float32, so the limit for that dtype is a little higher.
  return max(float(jnp.finfo(dtype).tiny), math.exp(LOG_ZERO))


def check_spans(student_spans: ArrayLike, teacher_spans: ArrayLike) -> tuple[jax.Array, jax.Array]:
  """Returns both as arrays; TypeError unless integers, ValueError unless leading axes agree."""
  spans = jnp.asarray(student_spans), jnp.asarray(teacher_spans)
  for name, array in zip(("student_spans", "teacher_spans"), spans, strict=True):
    if not jnp.issubdtype(array.dtype, jnp.integer):
      raise TypeError(f"{name} must be integers, got {array.dtype}.")
  if not spans[0].ndim or spans[0].shape[:-1] != spans[1].shape[:-1]:
    raise ValueError(
      "student_spans [..., seq_s] and teacher_spans [..., seq_t] must have the same leading axes,"
      f" got {spans[0].shape} and {spans[1].shape}."
    )
  return spans


def check_average(average: str) -> None:
  """Raises ValueError unless `average` is one of `SPAN_AVERAGES`."""
  if average not in SPAN_AVERAGES:
    raise ValueError(f"span_average must be one of {', '.join(SPAN_AVERAGES)}, got {average!r}.")


def _valid(student_spans: jax.Array, teacher_spans: jax.Array) -> jax.Array:
  size = min(student_spans.shape[0], teacher_spans.shape[0])
  sides = (_counts(_index(spans, size), size) for spans in (student_spans, teacher_spans))
  return jnp.logical_and(*(counts > 0 for counts in sides))


def _index(spans: jax.Array, size: int) -> jax.Array:
  return jnp.where((spans >= 1) & (spans <= size), spans - 1, size)


def _counts(index: jax.Array, size: int) -> jax.Array:
  return jax.ops.segment_sum(jnp.ones_like(index), index, num_segments=size)
