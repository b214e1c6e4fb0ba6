"""Divergences between student and teacher, on logits: one number per token, in nats.

Each is derived from its formula in `log_divergences`, where its options and its source are written;
`help(losses.jensen_shannon)` shows them together with the arguments that all divergences share.

>>> import jax.numpy as jnp
>>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
>>> round(float(forward_kl(z_s, z_t)), 4), round(float(forward_kl(z_s, z_t, temperature=2.0)), 4)
(0.2988, 0.0885)
>>> round(float(jensen_shannon(z_s, z_t)), 4), round(float(jensen_shannon(z_s, z_t, beta=0.1)), 4)
(0.0759, 0.0268)
>>> round(float(target_class_kl(z_s, z_t, jnp.array(0))), 4)
0.2562
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from jax.typing import ArrayLike

from egad_jax.losses import log_divergences
from egad_jax.losses.log_divergences import LOG_DIVERGENCES, LogDivergence
from egad_jax.losses.probabilities import check_labels, check_pair, log_probabilities
from egad_jax.losses.top_k import Teacher, TopK, check_dense, coarse_pair

_SHARED = """

Args:
  student_logits: float, shape [..., vocab]. An entry may be -inf, here and in the teacher's: a
    probability of zero counts as exp(-100), so values and gradients stay finite where the exact
    divergence is infinite.
  teacher_logits: float, same shape, {alternative}.
    Detached: gradient flows to the student only.
{options}\
  temperature: T > 0; one number, or one per token, shape [...]. Detached. The divergence has no
    factor T^2: see `compensation_factor`.
  where: bool [vocab], true at real vocabulary entries; values of the others are ignored. None
    counts all entries.

Returns:
  The divergence of each token, shape [...], at least float32 (float64 stays).

Raises:
  TypeError: logits that are not floating point, or labels that are not integers.
  ValueError: shapes that do not match, or an option out of range.
"""
_OR_TOP_K = "or a `TopK`: the divergence is then taken over its categories"
_NO_TOP_K = "not a `TopK`, which does not know every label's probability"


class Divergence(Protocol):
  """A divergence on logits, as `on_logits` makes it."""

  def __call__(
    self,
    student_logits: ArrayLike,
    teacher_logits: Teacher,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    **options: float,
  ) -> jax.Array: ...


class LabelDivergence(Protocol):
  """A divergence on logits that depends on the labels, as `on_logits_and_labels` makes it."""

  def __call__(
    self,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
  ) -> jax.Array: ...


def on_logits(formula: LogDivergence) -> Divergence:
  """Returns a divergence on logits, with the options and the documentation of its formula.

  Args:
    formula: function of (log_q, log_p), as those of `log_divergences`, options keyword-only.
  """

  def divergence(
    student_logits: ArrayLike,
    teacher_logits: Teacher,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    **options: float,
  ) -> jax.Array:
    log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
    return formula(log_q, log_p, **options)

  _describe(divergence, formula, alternative=_OR_TOP_K)
  return divergence


def on_logits_and_labels(formula: LogDivergence) -> LabelDivergence:
  """Returns a divergence on logits and labels; `formula` takes (log_q, log_p, labels)."""

  def divergence(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
  ) -> jax.Array:
    check_dense(formula.__name__, teacher_logits)
    log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
    return formula(log_q, log_p, check_labels(labels, log_q.shape[:-1]))

  _describe(divergence, formula, alternative=_NO_TOP_K)
  return divergence


def _describe(divergence: Any, formula: LogDivergence, *, alternative: str) -> None:
  """Gives `divergence` the name, the options and the documentation of `formula`.

  Args:
    divergence: function of logits; changed.
    formula: function of log-probabilities.
    alternative: what the documentation says of a `TopK` as teacher_logits.
  """
  divergence.__name__ = divergence.__qualname__ = formula.__name__
  meaning, _, options = inspect.cleandoc(formula.__doc__ or "").partition("\n\nArgs:\n")
  options = f"{options}\n" if options else ""
  divergence.__doc__ = meaning + _SHARED.format(options=options, alternative=alternative)
  kinds = inspect.Parameter
  shared = inspect.signature(divergence)
  shown = [p for p in shared.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
  own = [p for p in inspect.signature(formula).parameters.values() if p.kind is kinds.KEYWORD_ONLY]
  # A stable sort: what is positional stays in front.
  divergence.__signature__ = shared.replace(parameters=sorted(own + shown, key=lambda p: p.kind))


def _log_q_p(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  temperature: ArrayLike,
  where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array]:
  if isinstance(teacher_logits, TopK):
    student_logits, teacher_logits = coarse_pair(student_logits, teacher_logits, where=where)
    where = None
  else:
    student_logits, teacher_logits = check_pair(student_logits, teacher_logits)
  return (
    log_probabilities(student_logits, temperature=temperature, where=where),
    log_probabilities(teacher_logits, temperature=temperature, where=where),
  )


DIVERGENCES: Mapping[str, Divergence] = {
  name: on_logits(formula) for name, formula in LOG_DIVERGENCES.items()
}
"""The divergences that need no labels, by the name that `make_egad(divergence=...)` takes."""

forward_kl = DIVERGENCES["forward_kl"]
reverse_kl = DIVERGENCES["reverse_kl"]
jensen_shannon = DIVERGENCES["jensen_shannon"]
skew_forward_kl = DIVERGENCES["skew_forward_kl"]
skew_reverse_kl = DIVERGENCES["skew_reverse_kl"]
total_variation = DIVERGENCES["total_variation"]
alpha_beta = DIVERGENCES["alpha_beta"]
adaptive_kl = DIVERGENCES["adaptive_kl"]
token_wise_kl = DIVERGENCES["token_wise_kl"]
hellinger = on_logits(log_divergences.hellinger)
target_class_kl = on_logits_and_labels(log_divergences.target_class_kl)
non_target_class_kl = on_logits_and_labels(log_divergences.non_target_class_kl)
