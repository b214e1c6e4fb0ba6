"""X-Token: distillation from a teacher with another tokenizer, as a method to train with.

Projection, spans and divergences are those of arXiv 2605.21699. Here a span is a stretch of text
that both tokenizers cut out (see `losses.spans`), and it is the unit of the loss, as a token is in
the other methods. Its entropy is that of the teacher's distribution over the teacher's vocabulary,
and EGAD's curriculum and temperature apply to spans as they do to tokens.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.cross_tokenizer import (
  CrossTokenizer,
  make_span_divergence,
  project,
  projected_kl,
  reachable,
)
from egad_jax.losses.curriculum import Curriculum
from egad_jax.losses.entropy import entropy_of
from egad_jax.losses.guidance import TokenGuidance, running_guidance
from egad_jax.losses.spans import LogAverage, SpanPairs
from egad_jax.losses.sparse_projection import check_projection
from egad_jax.losses.temperature import Temperature, check_no_gradient
from egad_jax.losses.terms import check_ce_weight
from egad_jax.methods.method import Context, Method, SpanLoss, entropy_only
from egad_jax.types import Stats


def make_x_token(
  *,
  projection: tuple[ArrayLike, ArrayLike],
  kind: str = "p_kl",
  temperature: Temperature = Temperature(kind="fixed"),  # noqa: B008 (frozen)
  curriculum: Curriculum | None = None,
  span_average: str = "prob",
  teacher_top_k: int | None = 8192,
  minimum_weight: float = 0.6,
  ce_weight: float = 0.1,
  half_life: float = 1e6,
) -> Method:
  """Makes X-Token, distillation across tokenizers; a `Method` with a `SpanLoss`.

  The loss of a span is w(h) T(h)^2 D(T) - ce_weight log q(span), where h is the position of the
  entropy of the teacher's span distribution, and log q(span) is the sum of the labels'
  log-probabilities over the span's student tokens. The defaults are the paper's P-KL. `curriculum`
  and an adaptive `temperature` add mechanisms 1 and 2 of EGAD; all tokens of a span then have the
  span's temperature.

  Args:
    projection: (ids, weights), each [Vs, k], see `ProjectionArrays`; NumPy arrays for "h_kl".
    kind: the divergence, "p_kl", "h_kl" or "uld"; see `cross_tokenizer_loss`.
    temperature: mechanism 2; kind "fixed" gives all spans one temperature.
    curriculum: mechanism 1, the weights of the spans; None for a weight of 1.
    span_average: "prob", "logprob" or "chain_rule"; see `CrossTokenizer`.
    teacher_top_k: number of teacher entries that "p_kl" compares, None for all; see
      `CrossTokenizer`. With a number, the spans of a row share one choice of entries; with None,
      no span's loss depends on another span.
    minimum_weight: projection weight, in (0.5, 1], from which "h_kl" takes two tokens as a pair;
      see `CrossTokenizer`.
    ce_weight: factor, >= 0, on the labels' negative log-likelihood; 0 leaves it out of the loss.
      The paper uses 0.1.
    half_life: spans after which a span counts half in the entropy distribution; > 0.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.

  >>> import numpy as np
  >>> same = np.arange(5)[:, None], np.ones((5, 1), np.float32)
  >>> method = make_x_token(projection=same)
  >>> method.loss.average
  'prob'
  """
  check_ce_weight(ce_weight)
  check_no_gradient(temperature, "x_token")
  options = CrossTokenizer(
    kind=kind,
    span_average=span_average,
    teacher_top_k=teacher_top_k,
    minimum_weight=minimum_weight,
  )
  divergence = make_span_divergence(projection, options)

  def guide(entropy: jax.Array, context: Context) -> TokenGuidance:
    return running_guidance(
      entropy,
      distribution=context.state.entropy,
      progress=context.progress,
      elapsed=context.elapsed,
      curriculum=curriculum,
      temperature=temperature,
      branch=None,
    )

  def read_teacher(log_p: LogAverage, context: Context) -> tuple[jax.Array, Stats]:
    plain = log_p(1.0)
    reached = reachable(projection, plain.shape[-1])
    stats = {
      "teacher_entropy": entropy_of(plain),
      "uncovered": jnp.sum(jnp.exp(plain), axis=-1, where=~reached),
    }
    of_spans = guide(stats["teacher_entropy"], context).temperature
    return (plain if _is_one(of_spans) else log_p(of_spans)), stats

  def function(
    pairs: SpanPairs, teacher: Stats, kept: jax.Array | None, context: Context
  ) -> tuple[jax.Array, Stats]:
    guidance = guide(teacher["teacher_entropy"], context)
    log_q, log_p = pairs.log_q(1.0), pairs.log_p(1.0)
    check_projection(projection, log_q.shape[-1], log_p.shape[-1])
    of_warm = guidance.temperature
    value = divergence(pairs.q(of_warm), pairs.log_q(of_warm), pairs.log_p(of_warm), kept)
    # A factor of 1 is skipped, so that a mechanism that is off costs nothing and changes no bit.
    if not _is_one(guidance.factor):
      value = value * guidance.factor
    if guidance.weight is not None:
      value = value * guidance.weight
    nll = pairs.student_nll
    loss = value + ce_weight * nll if ce_weight else value

    projected = project(pairs.q(1.0), projection, log_p.shape[-1])
    reached = reachable(projection, log_p.shape[-1])
    stats = {
      "teacher_entropy": teacher["teacher_entropy"],
      "student_entropy": entropy_of(log_q),
      "temperature": guidance.temperature,
      "weight": 1.0 if guidance.weight is None else guidance.weight,
      "hard": False,
      "distillation_loss": value,
      "cross_entropy": nll,
      "student_nll": nll,
      "student_tokens": pairs.student_tokens,
      "teacher_tokens": pairs.teacher_tokens,
      "forward_kl": projected_kl(log_p, projected, reached),
      "uncovered": teacher["uncovered"],
      "agreement": jnp.argmax(projected, axis=-1) == jnp.argmax(log_p, axis=-1),
    }
    return loss, {
      name: jax.lax.stop_gradient(jnp.broadcast_to(jnp.asarray(stat, loss.dtype), loss.shape))
      for name, stat in stats.items()
    }

  return Method(
    loss=SpanLoss(span_average, read_teacher, function, options.entries_of_a_row),
    reads_progress=curriculum is not None,
    **entropy_only(half_life),
  )


def _is_one(factor: float | jax.Array) -> bool:
  return isinstance(factor, float) and factor == 1
