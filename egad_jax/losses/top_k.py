"""Sparse teachers, of which only the k likeliest entries are known, and their comparison.

Both models are reduced to k + 1 categories: the k ids, and the ghost token for all other entries.
The teacher's ghost has its tail mass, the student's the exact mass of its own other entries, so the
student learns the mass of the tail but not its shape, and the gradient reaches every entry. Any
divergence then applies to the categories. By the data-processing inequality the forward, reverse,
skew and Jensen-Shannon KL and the total variation are at most those of the full vocabulary, and
equal to them where the two tails are proportional; with k = vocab nothing is lost.

A temperature acts on the k + 1 categories as if they were the vocabulary, because the shape of the
tail, which tempering would need, is not known. The divergence of equal models is still zero, but it
is not the divergence of the tempered full distributions reduced to categories; for that, take the
`TopK` of teacher_logits / T and compare it with student_logits / T at temperature 1.

A distillation head, which has the logits of one chunk of tokens at a time, compares the student
instead with the distribution of `spread_tail`: over the whole vocabulary, with an even tail. Every
loss can read it, at any temperature.

If `log_tail` is None there is no ghost: both models are renormalized over the ids. The comparison
is then exact among the ids at any temperature and ignores the mass outside. The student must give
at least one id a finite logit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.entropy import token_entropy
from egad_jax.losses.probabilities import check_logits, check_mask, hide_columns, promote


class TopK(NamedTuple):
  """The k likeliest entries of a teacher's next-token distributions at T = 1.

  Every divergence of `DIVERGENCES` accepts it instead of `teacher_logits`.

  Attributes:
    ids: int, shape [..., k], distinct vocabulary ids.
    log_probs: float, shape [..., k], log-probabilities of the ids in nats; -inf for probability 0.
    log_tail: float, shape [...], log of the mass of all other entries; -inf if that is 0. None
      leaves them out: student and teacher are then renormalized over the ids.
    entropy: float, shape [...], entropy of the full distribution in nats. None if it is not known;
      the midpoint of `entropy_bracket` is then used.
  """

  ids: jax.Array
  log_probs: jax.Array
  log_tail: jax.Array | None
  entropy: jax.Array | None = None


Teacher = ArrayLike | TopK
"""The teacher argument of a divergence: logits [..., vocab], or their `TopK`."""


def top_k_teacher(teacher_logits: ArrayLike, k: int, *, where: ArrayLike | None = None) -> TopK:
  """Reduces dense logits to their k likeliest entries, the rest's mass and the exact entropy.

  Args:
    teacher_logits: float, shape [..., vocab]. Detached.
    k: number of entries kept, in [1, vocab].
    where: bool [vocab], true at real vocabulary entries; None counts all.

  Returns:
    The `TopK`, likeliest first, at least float32 (float64 stays).

  Raises:
    TypeError: the logits are not floating point.
    ValueError: `k` is out of range or `where` has the wrong shape.

  >>> top_k = top_k_teacher(jnp.array([2.0, 1.0, 0.0, -1.0]), 2)
  >>> top_k.ids.tolist(), round(float(jnp.exp(top_k.log_tail)), 4), round(float(top_k.entropy), 4)
  ([0, 1], 0.1192, 0.9475)
  """
  logits = jax.lax.stop_gradient(check_logits("teacher_logits", teacher_logits))
  if not 1 <= k <= logits.shape[-1]:
    raise ValueError(f"k must be in [1, {logits.shape[-1]}], the vocabulary, got {k}.")
  logits = hide_columns(logits, where)
  best, ids = jax.lax.top_k(logits, k)
  total = jax.nn.logsumexp(logits, axis=-1)
  return TopK(ids, best - total[..., None], _log_rest(logits, ids) - total, token_entropy(logits))


def coarse_pair(
  student_logits: ArrayLike, top_k: TopK, *, where: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
  """Reduces student and teacher to the categories of a `TopK`.

  Args:
    student_logits: float, shape [..., vocab].
    top_k: the teacher's distributions. Detached.
    where: bool [vocab], true at real vocabulary entries; an id where it is false has probability 0
      for both models. None counts all.

  Returns:
    Logits of the student and of the teacher, each [..., k + 1], the ghost last; [..., k] when
    `top_k.log_tail` is None. The student's ghost is the log-sum-exp of its other entries.

  Raises:
    TypeError: wrong dtypes.
    ValueError: shapes that do not match.

  >>> student = jnp.array([1.0, 1.0, 1.0, 0.0])
  >>> top_k = top_k_teacher(jnp.array([2.0, 1.0, 0.0, -1.0]), 2)
  >>> for logits in coarse_pair(student, top_k):
  ...   print(*(f"{p:.3f}" for p in jax.nn.softmax(logits)))
  0.297 0.297 0.406
  0.644 0.237 0.119
  """
  student_logits = hide_columns(check_logits("student_logits", student_logits), where)
  ids, log_probs, log_tail, _ = check_top_k(top_k, student_logits.shape)
  student = jnp.take_along_axis(student_logits, ids, axis=-1)
  if where is not None:
    log_probs = jnp.where(jnp.asarray(where).astype(bool)[ids], log_probs, -jnp.inf)
  if log_tail is None:
    return student, log_probs
  ghost = _log_rest(student_logits, ids)
  return (
    jnp.concatenate([student, ghost[..., None]], axis=-1),
    jnp.concatenate([log_probs, log_tail[..., None]], axis=-1),
  )


def spread_tail(top_k: TopK, vocab_size: int) -> jax.Array:
  """Returns the log-probabilities of a distribution that has this top k and an even tail.

  An id keeps its log-probability, and every other entry has an equal share of the tail's mass:
  log_tail - log(vocab_size - k). With k = vocab_size this is the teacher's distribution; otherwise
  it is the one of largest entropy among those that `top_k` can stand for.

  Args:
    top_k: the distributions, with a `log_tail`; `entropy` is not read. Ids outside the vocabulary
      are left out.
    vocab_size: number of real vocabulary entries, at least k.

  Returns:
    Log-probabilities in nats, at least float32, shape [..., vocab_size], detached; -inf where the
    probability is 0.

  Raises:
    TypeError: wrong dtypes.
    ValueError: shapes that do not match, `vocab_size` less than k, or no `log_tail`.

  >>> top_k = top_k_teacher(jnp.array([2.0, 1.0, 0.0, -1.0]), 2)
  >>> [round(float(p), 4) for p in jnp.exp(spread_tail(top_k, 4))]
  [0.6439, 0.2369, 0.0596, 0.0596]
  """
  leading = top_k.log_probs.shape[:-1]
  ids, log_probs, log_tail, _ = check_top_k(top_k, (*leading, vocab_size))
  if log_tail is None:
    raise ValueError(
      "log_tail of a TopK must be given, because the entries outside its ids share that mass; got"
      " None. Give -inf if the ids have all of the mass."
    )
  others = vocab_size - ids.shape[-1]
  share = log_tail - math.log(others) if others else jnp.full(leading, -jnp.inf)
  dense = jnp.broadcast_to(share[..., None], (*leading, vocab_size)).astype(log_probs.dtype)
  return jnp.put_along_axis(dense, ids, log_probs, axis=-1, inplace=False)


def entropy_bracket(top_k: TopK, vocab_size: int) -> tuple[jax.Array, jax.Array]:
  """Returns the least and largest entropy in nats that a distribution with this top k can have.

  With H_top = -sum p log p over the ids, R the mass of the other entries and p_m the least
  probability of an id: H_top - R log min(R, p_m) <= H <= H_top + R (log(vocab_size - k) - log R).
  No other entry exceeds min(R, p_m), hence the lower bound; at the upper bound all are equal.

  Args:
    top_k: the teacher's distributions; `entropy` is not read. If `log_tail` is None, R is 1 minus
      the mass of the ids.
    vocab_size: number of the teacher's vocabulary entries, at least k; entries that are never
      predicted only raise the upper bound.

  Returns:
    (low, high), detached, each [...], with low <= high.

  Raises:
    TypeError: wrong dtypes.
    ValueError: shapes that do not match, or `vocab_size` less than k.

  >>> top_k = top_k_teacher(jnp.array([2.0, 1.0, 0.0, -1.0]), 2)  # H = 0.9475
  >>> low, high = entropy_bracket(top_k, 4)
  >>> round(float(low), 4), round(float(high), 4)
  (0.8781, 0.9608)
  """
  _, log_probs, log_tail, _ = check_top_k(top_k, (*top_k.log_probs.shape[:-1], vocab_size))
  if log_tail is None:
    log_tail = jnp.log(jnp.maximum(-jnp.expm1(jax.nn.logsumexp(log_probs, axis=-1)), 0))
  left = log_tail > -jnp.inf
  log_rest = jnp.where(left, log_tail, 0)  # Finite, because it is multiplied by a mass of 0 below.
  rest = jnp.exp(log_tail)
  # An id of probability 0 adds 0 to the entropy, not NaN.
  h_top = jnp.sum(-jnp.exp(log_probs) * jnp.where(log_probs > -jnp.inf, log_probs, 0), axis=-1)
  least = jnp.where(left, jnp.min(log_probs, axis=-1), 0)
  low = h_top - rest * jnp.minimum(log_rest, least)
  others = max(vocab_size - log_probs.shape[-1], 1)
  # With rounded log-probabilities the bounds can cross; `high` is kept at least `low`.
  return low, jnp.maximum(low, h_top + rest * (math.log(others) - log_rest))


def entropy_estimate(top_k: TopK, vocab_size: int) -> jax.Array:
  """Returns the entropy in nats, [...]: the stored one, or the midpoint of the bracket."""
  if top_k.entropy is not None:
    return jax.lax.stop_gradient(promote("entropy", top_k.entropy))
  low, high = entropy_bracket(top_k, vocab_size)
  return (low + high) / 2


def mask_top_k(top_k: TopK, mask: ArrayLike) -> TopK:
  """Returns `top_k` with valid ids and no NaN outside the mask, whatever was there.

  Args:
    top_k: the distributions; values outside the mask may be NaN and ids out of range.
    mask: bool, shape [...], true at tokens that count.

  >>> empty = TopK(jnp.array([[9, 9]]), jnp.full((1, 2), jnp.nan), jnp.array([jnp.nan]))
  >>> mask_top_k(empty, jnp.array([False])).ids.tolist()
  [[0, 1]]
  """
  mask = check_mask(mask, top_k.ids.shape[:-1])
  count = top_k.ids.shape[-1]
  first = jax.lax.broadcasted_iota(top_k.ids.dtype, top_k.ids.shape, top_k.ids.ndim - 1)
  return TopK(
    jnp.where(mask[..., None], top_k.ids, first),
    jnp.where(mask[..., None], top_k.log_probs, -math.log(count)),
    None if top_k.log_tail is None else jnp.where(mask, top_k.log_tail, -jnp.inf),
    None if top_k.entropy is None else jnp.where(mask, top_k.entropy, math.log(count)),
  )


def check_top_k(top_k: TopK, shape: tuple[int, ...]) -> TopK:
  """Returns `top_k` promoted and detached; raises unless it fits logits of `shape` [..., vocab]."""
  ids = jnp.asarray(top_k.ids)
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(f"ids of a TopK must be integers, got {ids.dtype}.")
  leading, vocab = shape[:-1], shape[-1]
  if ids.ndim != len(shape) or ids.shape[:-1] != leading or not 1 <= ids.shape[-1] <= vocab:
    raise ValueError(
      f"ids of a TopK must have shape {(*leading, 'k')}, the logits' leading shape and k of their"
      f" {vocab} entries, got {ids.shape}."
    )
  expected = {"log_probs": ids.shape, "log_tail": leading, "entropy": leading}
  found: dict[str, Any] = {}
  for name, expected_shape in expected.items():
    value = getattr(top_k, name)
    if value is not None:
      value = jax.lax.stop_gradient(promote(f"{name} of a TopK", value))
      if value.shape != expected_shape:
        raise ValueError(f"{name} of a TopK must have shape {expected_shape}, got {value.shape}.")
    found[name] = value
  return TopK(ids, **found)


def check_dense(name: str, teacher: Teacher) -> None:
  """Raises TypeError for a `TopK`: `name` reads probabilities that it does not hold."""
  if isinstance(teacher, TopK):
    raise TypeError(
      f"{name} needs teacher_logits over the whole vocabulary, got a TopK, which does not know the"
      " probability of a label outside its ids."
    )


def _log_rest(logits: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns the log-sum-exp of the entries not among the ids, [...]; -inf when there are none.

  It is summed from these entries: 1 minus the ids' mass loses all digits for a confident model.
  """
  rest = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
  left = jnp.any(rest > -jnp.inf, axis=-1)
  # The gradient of the logarithm of an empty sum is 0 / 0, so a sum of ones replaces it there.
  total = jax.nn.logsumexp(jnp.where(left[..., None], rest, 0), axis=-1)
  return jnp.where(left, total, -jnp.inf)
