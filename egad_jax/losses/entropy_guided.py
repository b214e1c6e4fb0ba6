"""The token loss of EGAD: a divergence whose temperature and weight follow the teacher's entropy.

The loss is an object rather than a function so that a head can see its form: with the forward KL,
value and gradient have a closed form given a token's guidance, and need no automatic
differentiation. Vanilla KD is the same loss with every mechanism off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.typing import ArrayLike

from egad_jax.losses.gradient_norm import norm_compensated
from egad_jax.losses.guidance import TokenGuidance
from egad_jax.losses.log_divergences import LogDivergence
from egad_jax.losses.terms import at_temperature, log_pair, loss_and_stats, token_terms
from egad_jax.losses.top_k import Teacher
from egad_jax.types import Stats


@dataclasses.dataclass(frozen=True)
class EntropyGuidedLoss:
  """w(H) f(T) D(T) + ce_weight CE for each token, as a `TokenLoss`.

  Attributes:
    guide: (teacher entropy [n] in nats, context) -> the guidance of the tokens.
    divergence: (log_q, log_p), each [n, vocab] -> divergence of each token [n]; see
      `log_divergences`.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    hard_logits: whether hard tokens keep their divergence; if not, it is multiplied by 1 - gate.
    is_forward_kl: whether `divergence` is KL(teacher || student), which has the closed form.
    compensation: a compensation for the temperature that reads the gradient, see
      `norm_compensated`, with which there is no closed form; None if the guidance's factor is all.
  """

  guide: Callable[[jax.Array, Any], TokenGuidance]
  divergence: LogDivergence
  ce_weight: float = 0.0
  hard_logits: bool = True
  is_forward_kl: bool = False
  compensation: str | None = None

  def __call__(
    self,
    student_logits: ArrayLike,
    teacher_logits: Teacher,
    labels: ArrayLike,
    extras: Mapping[str, jax.Array],
    context: Any,
  ) -> tuple[jax.Array, Stats]:
    """Returns loss and stats of each token, see `terms.token_terms`; the only pass over logits."""
    entropy = extras.get("teacher_entropy")
    pair = log_pair(student_logits, teacher_logits, teacher_entropy=entropy)
    guidance = self.guide(pair.teacher_entropy, context)
    if self.compensation is None:
      value = self.divergence(*at_temperature(pair, guidance.temperature))
    else:
      value = norm_compensated(self.divergence, pair, guidance.temperature, kind=self.compensation)
    return token_terms(
      pair,
      labels,
      self.weighted(value, guidance),
      ce_weight=self.ce_weight,
      **_reported(guidance),
    )

  def weighted(self, value: jax.Array, guidance: TokenGuidance) -> jax.Array:
    """Returns the divergence `value` times factor, weight and gate, as it enters the loss, [n]."""
    # A factor of 1 is skipped, so that a mechanism that is off costs nothing and changes no bit.
    if not (isinstance(guidance.factor, float) and guidance.factor == 1):
      value = value * guidance.factor
    if guidance.weight is not None:
      value = value * guidance.weight
    if guidance.hard is not None and not self.hard_logits:
      value = value * (1 - guidance.hard)
    return value

  def of_sums(
    self,
    guidance: TokenGuidance,
    *,
    divergence: jax.Array,
    cross_entropy: jax.Array,
    teacher_entropy: jax.Array,
    student_entropy: jax.Array,
  ) -> tuple[jax.Array, Stats]:
    """Returns the result of `__call__` from sums over the vocabulary that a head has made.

    Args:
      guidance: the guidance of the tokens.
      divergence: divergence at the guidance's temperature, without factor and weight, [n].
      cross_entropy: cross-entropy with the labels in nats, [n].
      teacher_entropy: the teacher's entropy at T = 1 in nats, [n].
      student_entropy: the student's entropy at T = 1 in nats, [n].
    """
    return loss_and_stats(
      self.weighted(divergence, guidance),
      cross_entropy=cross_entropy,
      teacher_entropy=teacher_entropy,
      student_entropy=student_entropy,
      ce_weight=self.ce_weight,
      **_reported(guidance),
    )


def _reported(guidance: TokenGuidance) -> dict[str, Any]:
  return {
    "temperature": guidance.temperature,
    "weight": 1.0 if guidance.weight is None else guidance.weight,
    "hard": 0.0 if guidance.hard is None else guidance.hard,
  }
