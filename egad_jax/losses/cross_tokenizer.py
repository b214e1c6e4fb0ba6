"""Divergences between models with different tokenizers, span by span.

P-KL and H-KL are from X-Token (arXiv 2605.21699), the sorted distance from ULD (arXiv 2402.12030).
Both models see the same text. The divergences compare its spans (see `losses.spans`), each by one
distribution per model. P-KL maps the student's distribution to the teacher's vocabulary by a
projection that `egad_jax.data.projection` builds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from egad_jax.losses import log_divergences
from egad_jax.losses.entropy import entropy_of
from egad_jax.losses.probabilities import check_logits, log_probabilities
from egad_jax.losses.reductions import masked_mean, masked_sum
from egad_jax.losses.spans import (
  check_average,
  check_spans,
  log_or_floor,
  make_row,
)
from egad_jax.losses.sparse_projection import check_projection, sparse_projection

SpanDivergence = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]
"""(q [..., Vs], log_q [..., Vs], log_p [..., Vt], kept) -> divergence of each span [...].

`kept`, bool that broadcasts to [..., Vt], marks the teacher's entries that "p_kl" compares; None
for all.
"""

# The top-1 weight of a strict pair is 1 up to the rounding of a float32 row sum.
_ROUNDING = 1e-6


class ProjectionArrays(NamedTuple):
  """A sparse matrix W from the student's vocabulary to the teacher's; any such pair is accepted.

  Attributes:
    ids: int32 [Vs, k], the teacher ids that each student token maps to.
    weights: float32 [Vs, k], >= 0, the weight of each id, 0 at unused entries; a token's weights
      sum to 1, or to 0 when it has no counterpart.
  """

  ids: ArrayLike
  weights: ArrayLike


@dataclasses.dataclass(frozen=True)
class CrossTokenizer:
  """How spans of two vocabularies are compared.

  Attributes:
    kind: "p_kl", "h_kl" or "uld"; see `cross_tokenizer_loss`.
    span_average: "prob", "logprob" or "chain_rule", the same on both sides; see
      `span_log_average`. The paper takes "prob" for the student and "logprob", not normalized, for
      the teacher, and then equal models do not have divergence 0.
    teacher_top_k: number of teacher entries that "p_kl" compares, the likeliest of each row, and
      largest number of uncommon entries that "h_kl" sorts; None for all. 8192 is the paper's. The
      paper chooses the entries by logits, for a micro-batch, before averaging; here they are chosen
      by the spans' probabilities, for a row.
    minimum_weight: in (0.5, 1]; a student token whose largest projection weight is at least this
      forms a common pair in "h_kl". 1 is GOLD's strict set, 0.6 the paper's relaxed one.
  """

  kind: str = "p_kl"
  span_average: str = "prob"
  teacher_top_k: int | None = 8192
  minimum_weight: float = 0.6

  def __post_init__(self) -> None:
    if self.kind not in CROSS_TOKENIZER_KINDS:
      raise ValueError(
        f"kind must be one of {', '.join(CROSS_TOKENIZER_KINDS)}, got {self.kind!r}."
      )
    check_average(self.span_average)
    if self.teacher_top_k is not None and not self.teacher_top_k >= 1:
      raise ValueError(f"teacher_top_k must be at least 1 or None, got {self.teacher_top_k}.")
    if not 0.5 < self.minimum_weight <= 1:
      raise ValueError(f"minimum_weight must be in (0.5, 1], got {self.minimum_weight}.")

  def entries_of_a_row(self, teacher_vocab: int) -> int | None:
    """The number of teacher entries of a row that are compared; None if nothing is left out."""
    if self.kind != "p_kl" or self.teacher_top_k is None or self.teacher_top_k >= teacher_vocab:
      return None
    return self.teacher_top_k


def cross_tokenizer_loss(
  student_logits: ArrayLike,
  teacher_logits: ArrayLike,
  student_spans: ArrayLike,
  teacher_spans: ArrayLike,
  *,
  projection: tuple[ArrayLike, ArrayLike],
  kind: str = "p_kl",
  temperature: float = 1.0,
  span_average: str = "prob",
  teacher_top_k: int | None = 8192,
  minimum_weight: float = 0.6,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Averages a divergence between two vocabularies over the valid spans; no factor T^2.

  With q and p the span's distributions (`span_log_average`) and W the projection:

  - p_kl: KL(p || W^T q) over the teacher entries that W reaches, both normalized there: mass
    without a counterpart, on either side, is left out of the comparison.
  - h_kl: sum over common pairs of p log(p/q), plus sum |sort q - sort p| over all other entries.
    The first sum pulls every uncommon student entry down, see arXiv 2605.21699, proposition 1.
  - uld: sum |sort q - sort p| over the whole vocabularies; does not use W.

  Args:
    student_logits: float, shape [..., seq_s, Vs].
    teacher_logits: float, shape [..., seq_t, Vt]. Detached.
    student_spans: int, shape [..., seq_s]: the span of the token that each logit row predicts,
      from 1; 0 for none. Logits may be NaN at positions of no valid span.
    teacher_spans: int, shape [..., seq_t], the same for the teacher's logits.
    projection: (ids, weights), each [Vs, k], see `ProjectionArrays`; "h_kl" needs NumPy arrays.
    kind: one of the above.
    temperature: temperature of both distributions; > 0.
    span_average: "prob", "logprob" or "chain_rule"; see `CrossTokenizer`.
    teacher_top_k: number of teacher entries compared, None for all; see `CrossTokenizer`.
    minimum_weight: projection weight, in (0.5, 1], that makes a common pair; see `CrossTokenizer`.

  Returns:
    The loss, a scalar, 0 without a valid span; and metrics, detached scalars: teacher_entropy and
    student_entropy (nats, means over spans, T = 1, each in its own vocabulary) and num_spans.

  Raises:
    TypeError: wrong dtype.
    ValueError: shapes that do not match, names or ranges.

  >>> student = jnp.array([[1.0, 1.0, 1.0, 0.0]])
  >>> teacher = jnp.array([[2.0, 1.0, 0.0, -1.0]])
  >>> same = np.arange(4)[:, None], np.ones((4, 1), np.float32)
  >>> one = jnp.array([1])
  >>> round(float(cross_tokenizer_loss(student, teacher, one, one, projection=same)[0]), 4)
  0.2988
  """
  options = CrossTokenizer(
    kind=kind,
    span_average=span_average,
    teacher_top_k=teacher_top_k,
    minimum_weight=minimum_weight,
  )
  divergence = make_span_divergence(projection, options)
  student_logits, teacher_logits, student_spans, teacher_spans = check_rows(
    student_logits, teacher_logits, student_spans, teacher_spans, projection
  )

  def row_terms(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    row = make_row(*arrays)
    plain = row.log_averages(average=span_average)
    warm = plain
    if not (isinstance(temperature, int | float) and temperature == 1):
      warm = row.log_averages(temperature=temperature, average=span_average)
    kept, size = None, options.entries_of_a_row(teacher_logits.shape[-1])
    if size is not None:
      kept = likeliest_entries(largest_of_spans(warm[1], row.valid), size)
    return (divergence(jnp.exp(warm[0]), *warm, kept), row.valid, *map(entropy_of, plain))

  values, valid, student_entropy, teacher_entropy = jnp.vectorize(
    row_terms, signature="(s,v),(t,w),(s),(t)->(c),(c),(c),(c)"
  )(student_logits, teacher_logits, student_spans, teacher_spans)
  metrics = {
    "teacher_entropy": masked_mean(teacher_entropy, valid),
    "student_entropy": masked_mean(student_entropy, valid),
    "num_spans": masked_sum(jnp.ones_like(values), valid),
  }
  return masked_mean(values, valid), jax.tree.map(jax.lax.stop_gradient, metrics)


def universal_logit_distance(
  student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike = 1.0
) -> jax.Array:
  """Returns sum |sort q - sort p|, both vocabularies padded to the larger (ULD, arXiv 2402.12030).

  The distance ignores which token is which: it is 0 between any two orders of one vocabulary. It is
  at most twice the total variation, so in [0, 2], and not in nats.

  Args:
    student_logits: float, shape [..., Vs].
    teacher_logits: float, shape [..., Vt]. Detached.
    temperature: temperature of both distributions, > 0; one number, or one per token, shape [...].

  Returns:
    The distance of each token, shape [...], at least float32.

  Raises:
    TypeError: logits that are not floating point.
    ValueError: leading axes that differ.

  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(universal_logit_distance(z_s, z_t)), 4)
  0.694
  """
  student_logits = check_logits("student_logits", student_logits)
  teacher_logits = jax.lax.stop_gradient(check_logits("teacher_logits", teacher_logits))
  if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
    raise ValueError(
      "student_logits and teacher_logits must have the same leading axes, got"
      f" {student_logits.shape} and {teacher_logits.shape}."
    )
  log_q, log_p = (
    log_probabilities(logits, temperature=temperature)
    for logits in (student_logits, teacher_logits)
  )
  return sorted_distance(jnp.exp(log_q), jnp.exp(log_p))


def common_tokens(
  projection: tuple[ArrayLike, ArrayLike], minimum_weight: float = 0.6
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the pairs of tokens that stand for one another, on the host.

  A student token is in a pair when its largest weight is at least `minimum_weight`. If several map
  to one teacher token, the largest weight wins, and at equal weights the lowest student id.

  Args:
    projection: (ids, weights), NumPy arrays [Vs, k], see `ProjectionArrays`.
    minimum_weight: least projection weight of a pair, in (0.5, 1]; 1 is the strict set.

  Returns:
    (student ids, teacher ids), both int32 [n]; no id occurs twice, and student ids ascend.

  Raises:
    TypeError: the projection is traced.

  >>> ids, weights = np.array([[2, 0], [2, 1], [1, 0]]), np.array([[0.7, 0.3], [1, 0], [0.5, 0.5]])
  >>> [pair.tolist() for pair in common_tokens((ids, weights))]
  [[1], [2]]
  """
  if any(isinstance(array, jax.core.Tracer) for array in projection):
    raise TypeError(
      "projection must be NumPy arrays where common tokens are chosen, not traced: close over it"
      " instead of passing it through jax.jit."
    )
  ids, weights = np.asarray(projection[0]), np.asarray(projection[1])
  rows = np.arange(ids.shape[0])
  best = np.argmax(weights, axis=1)
  weight, teacher = weights[rows, best], ids[rows, best]
  candidates = rows[weight >= minimum_weight - _ROUNDING]
  candidates = candidates[np.lexsort((candidates, -weight[candidates]))]
  _, winners = np.unique(teacher[candidates], return_index=True)
  student = np.sort(candidates[winners])
  return student.astype(np.int32), teacher[student].astype(np.int32)


def project(
  probabilities: jax.Array, projection: tuple[ArrayLike, ArrayLike], size: int
) -> jax.Array:
  """Returns W^T q, [..., C, Vs] -> [..., C, size].

  Mass of tokens without a counterpart is lost, and ids >= size are dropped.
  """
  return sparse_projection(projection, size)(probabilities)


def sorted_distance(q: jax.Array, p: jax.Array, *, largest: int | None = None) -> jax.Array:
  """Returns sum |sort q - sort p|, [..., Vs] and [..., Vt] -> [...].

  Only the `largest` highest entries of each count; None for all.
  """
  q, p = (_descending(x, largest) for x in (q, p))
  size = max(q.shape[-1], p.shape[-1])
  q, p = (jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])]) for x in (q, p))
  # |x| has a kink at 0, where rounding would choose the sign of the gradient, so differences of the
  # size of rounding count as 0. A log-probability is exact to a few eps of itself.
  differ = jnp.abs(q - p) > 8 * jnp.finfo(q.dtype).eps * (p + jax.scipy.special.entr(p))
  return jnp.sum(jnp.where(differ, jnp.abs(q - p), 0), axis=-1)


def reachable(projection: tuple[ArrayLike, ArrayLike], size: int) -> jax.Array:
  """Returns bool [size], true at teacher entries that some student entry projects onto."""
  ids, weights = jnp.asarray(projection[0]), jnp.asarray(projection[1])
  return jnp.zeros(size, bool).at[ids].max(weights > 0, mode="drop")


def projected_kl(log_p: jax.Array, projected: jax.Array, compared: jax.Array) -> jax.Array:
  """Returns KL(p || q~) over the entries `compared`, both normalized there; [..., Vt] -> [...].

  It is 0 where the teacher has no mass on these entries.

  Args:
    log_p: the teacher's log-probabilities, [..., Vt].
    projected: the student's projected probabilities q~, [..., Vt].
    compared: bool, of a shape that broadcasts to [..., Vt]: entries that `reachable` marks, or some
      of them. The student cannot express any other entry: its q~ is 0 whatever the student does, so
      it would add a constant of up to 100 nats and no gradient.
  """
  compared = jnp.broadcast_to(compared, log_p.shape)
  total = lambda x: jnp.sum(x, axis=-1, where=compared)
  p = jnp.exp(log_p)
  # All sums are of one pass over the vocabulary, so what normalizes is subtracted afterwards.
  mass_p, mass_q = total(p), total(projected)
  divergence = total(p * (log_p - log_or_floor(projected)))
  has_mass = mass_p > jnp.finfo(p.dtype).tiny
  mass_p = jnp.where(has_mass, mass_p, 1)
  # A student without any mass there has nothing to normalize; its entries count as exp(-100).
  log_of_q = jnp.log(jnp.where(mass_q > 0, mass_q, 1))
  return jnp.where(has_mass, divergence / mass_p + log_of_q - jnp.log(mass_p), 0)


def likeliest_entries(best: jax.Array, count: int) -> jax.Array:
  """Returns bool [..., Vt], true at the `count` largest entries of `best` [..., Vt].

  Of equal entries those with the lowest ids are taken.
  """
  flat = best.reshape(-1, best.shape[-1])
  ids = jax.lax.top_k(flat, count)[1]
  rows = jnp.arange(flat.shape[0])[:, None]
  return jnp.zeros(flat.shape, bool).at[rows, ids].set(True).reshape(best.shape)


def largest_of_spans(log_p: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns each entry's largest log-probability in any valid span, [C, Vt] -> [Vt]."""
  return jnp.max(log_p, axis=0, where=valid[:, None], initial=-jnp.inf)


def make_span_divergence(
  projection: tuple[ArrayLike, ArrayLike], options: CrossTokenizer
) -> SpanDivergence:
  """Returns the divergence of spans as a function of their distributions.

  Raises:
    TypeError: `projection` is traced and the kind is "h_kl".
  """

  def p_kl(q: jax.Array, log_q: jax.Array, log_p: jax.Array, kept: jax.Array | None) -> jax.Array:
    del log_q
    size = log_p.shape[-1]
    compared = reachable(projection, size)
    if kept is not None:
      compared = jnp.broadcast_to(compared, kept.shape) & kept
    return projected_kl(log_p, project(q, projection, size), compared)

  def uld(q: jax.Array, log_q: jax.Array, log_p: jax.Array, kept: jax.Array | None) -> jax.Array:
    del log_q, kept
    return sorted_distance(q, jnp.exp(log_p))

  if options.kind != "h_kl":
    return {"p_kl": p_kl, "uld": uld}[options.kind]
  student_ids, teacher_ids = common_tokens(projection, options.minimum_weight)

  def h_kl(q: jax.Array, log_q: jax.Array, log_p: jax.Array, kept: jax.Array | None) -> jax.Array:
    del kept
    common = log_divergences.forward_kl(log_q[..., student_ids], log_p[..., teacher_ids])
    q, p = (
      x[..., np.setdiff1d(np.arange(x.shape[-1]), ids)]
      for x, ids in ((q, student_ids), (jnp.exp(log_p), teacher_ids))
    )
    return common + sorted_distance(q, p, largest=options.teacher_top_k)

  return h_kl


CROSS_TOKENIZER_KINDS = ("p_kl", "h_kl", "uld")


def check_rows(
  student_logits: ArrayLike,
  teacher_logits: ArrayLike,
  student_spans: ArrayLike,
  teacher_spans: ArrayLike,
  projection: tuple[ArrayLike, ArrayLike],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns the promoted logits and the spans, student before teacher in each.

  Raises:
    TypeError: logits that are not floating point, or spans that are not integers.
    ValueError: shapes that do not match, or teacher ids out of range in a NumPy projection.
  """
  student_logits = check_logits("student_logits", student_logits)
  teacher_logits = check_logits("teacher_logits", teacher_logits)
  student_spans, teacher_spans = check_spans(student_spans, teacher_spans)
  for side, logits, spans in (
    ("student", student_logits, student_spans),
    ("teacher", teacher_logits, teacher_spans),
  ):
    if spans.shape != logits.shape[:-1]:
      raise ValueError(
        f"{side}_spans must have the shape of {side}_logits without the vocabulary,"
        f" {logits.shape[:-1]}, got {spans.shape}."
      )
  check_projection(projection, student_logits.shape[-1], teacher_logits.shape[-1])
  return student_logits, teacher_logits, student_spans, teacher_spans


def _descending(values: jax.Array, largest: int | None) -> jax.Array:
  if largest is not None and largest < values.shape[-1]:
    return jax.lax.top_k(values, largest)[0]
  return jnp.sort(values, axis=-1, descending=True)
