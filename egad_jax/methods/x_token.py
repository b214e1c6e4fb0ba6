"""X-Token: distillation from a teacher with another tokenizer, as a method to train with.

Projection, chunks and divergences are those of arXiv 2605.21699. Here a chunk is a stretch of text
that both tokenizers cut out (see `losses.chunks`), and it is the unit of the loss, as a token is in
the other methods. Its entropy is that of the teacher's distribution over the teacher's vocabulary,
and EGAD's curriculum and temperature apply to chunks as they do to tokens.
"""

from __future__ import annotations

from typing import NoReturn

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.chunks import make_row
from egad_jax.losses.cross_tokenizer import (
  CrossTokenizer,
  check_rows,
  make_chunk_divergence,
  project,
  projected_kl,
  reachable,
)
from egad_jax.losses.curriculum import Curriculum
from egad_jax.losses.entropy import entropy_of
from egad_jax.losses.guidance import running_guidance
from egad_jax.losses.probabilities import check_labels, label_value, log_probabilities
from egad_jax.losses.temperature import Temperature
from egad_jax.losses.terms import check_ce_weight
from egad_jax.methods.method import Context, Method, entropy_only
from egad_jax.types import Stats


def make_x_token(
  *,
  projection: tuple[ArrayLike, ArrayLike],
  kind: str = "p_kl",
  temperature: Temperature = Temperature(kind="fixed"),  # noqa: B008 (frozen)
  curriculum: Curriculum | None = None,
  chunk_average: str = "prob",
  teacher_top_k: int | None = 8192,
  minimum_weight: float = 0.6,
  ce_weight: float = 0.1,
  half_life: float = 1e6,
) -> Method:
  """Makes X-Token, distillation across tokenizers; a `Method` with `chunk_loss`, not `token_loss`.

  The loss of a chunk is w(h) T(h)^2 D(T) - ce_weight log q(chunk), where h is the position of the
  entropy of the teacher's chunk distribution, and log q(chunk) is the sum of the labels'
  log-probabilities over the chunk's student tokens. The defaults are the paper's P-KL. `curriculum`
  and an adaptive `temperature` add mechanisms 1 and 2 of EGAD; all tokens of a chunk then have the
  chunk's temperature.

  Args:
    projection: (ids, weights), each [Vs, k], see `ProjectionArrays`; NumPy arrays for "h_kl".
    kind: the divergence, "p_kl", "h_kl" or "uld"; see `cross_tokenizer_loss`.
    temperature: mechanism 2; kind "fixed" gives all chunks one temperature.
    curriculum: mechanism 1, the weights of the chunks; None for a weight of 1.
    chunk_average: "prob", "logprob" or "chain_rule"; see `CrossTokenizer`.
    teacher_top_k: number of teacher entries that "p_kl" compares, None for all; see
      `CrossTokenizer`. With a number, the chunks of a row share one choice of entries; with None,
      no chunk's loss depends on another chunk.
    minimum_weight: projection weight, in (0.5, 1], from which "h_kl" takes two tokens as a pair;
      see `CrossTokenizer`.
    ce_weight: factor, >= 0, on the labels' negative log-likelihood; 0 leaves it out of the loss.
      The paper uses 0.1.
    half_life: chunks after which a chunk counts half in the entropy distribution; > 0.

  Raises:
    ValueError: an argument is out of range, or a name is unknown.

  >>> import numpy as np
  >>> same = np.arange(5)[:, None], np.ones((5, 1), np.float32)
  >>> method = make_x_token(projection=same)
  >>> method.chunk_loss is None
  False
  """
  check_ce_weight(ce_weight)
  divergence = make_chunk_divergence(
    projection,
    CrossTokenizer(
      kind=kind,
      chunk_average=chunk_average,
      teacher_top_k=teacher_top_k,
      minimum_weight=minimum_weight,
    ),
  )

  def chunk_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    student_labels: jax.Array,
    student_chunks: jax.Array,
    teacher_chunks: jax.Array,
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    arrays = check_rows(student_logits, teacher_logits, student_chunks, teacher_chunks, projection)
    if arrays[0].ndim != 2:
      raise ValueError(
        f"student_logits must be those of one row, [seq, vocab], got {arrays[0].shape}; use"
        " jax.vmap or jax.lax.map over rows."
      )
    labels = check_labels(student_labels, arrays[0].shape[:-1])
    row = make_row(*arrays)
    log_q, log_p = row.log_averages(average=chunk_average)
    entropy = entropy_of(log_p)
    guidance = running_guidance(
      entropy,
      distribution=context.state.entropy,
      progress=context.progress,
      elapsed=context.elapsed,
      curriculum=curriculum,
      temperature=temperature,
      branch=None,
    )
    warm = log_q, log_p
    if not (isinstance(guidance.temperature, float) and guidance.temperature == 1):
      warm = row.log_averages(temperature=guidance.temperature, average=chunk_average)
    value = divergence(*warm, row.valid)
    # A factor of 1 is skipped, so that a mechanism that is off costs nothing and changes no bit.
    if not (isinstance(guidance.factor, float) and guidance.factor == 1):
      value = value * guidance.factor
    if guidance.weight is not None:
      value = value * guidance.weight
    nll = row.student.total(-label_value(log_probabilities(row.student.logits), labels))
    loss = value + ce_weight * nll if ce_weight else value

    log_q = jax.lax.stop_gradient(log_q)
    projected = project(jnp.exp(log_q), projection, log_p.shape[1])
    reached = reachable(projection, log_p.shape[1])
    stats = {
      "teacher_entropy": entropy,
      "student_entropy": entropy_of(log_q),
      "temperature": guidance.temperature,
      "weight": 1.0 if guidance.weight is None else guidance.weight,
      "hard": False,
      "distillation_loss": value,
      "cross_entropy": nll,
      "student_nll": nll,
      "student_tokens": row.student.counts,
      "teacher_tokens": row.teacher.counts,
      "forward_kl": projected_kl(log_p, projected, reached),
      "uncovered": jnp.sum(jnp.exp(log_p), axis=-1, where=~reached),
      "agreement": jnp.argmax(projected, axis=-1) == jnp.argmax(log_p, axis=-1),
    }
    return jnp.where(row.valid, loss, 0), {
      name: jax.lax.stop_gradient(
        jnp.where(row.valid, jnp.broadcast_to(jnp.asarray(stat, loss.dtype), loss.shape), 0)
      )
      for name, stat in stats.items()
    }

  return Method(
    token_loss=_no_token_loss,
    chunk_loss=chunk_loss,
    reads_progress=curriculum is not None,
    **entropy_only(half_life),
  )


def _no_token_loss(*arguments: object) -> NoReturn:
  raise TypeError("x_token compares chunks of two tokenizations, not tokens; call its chunk_loss.")
