"""The token loss of EGAD: a divergence whose temperature and weight follow the teacher's entropy.

It is an object and not only a function, so that a head can see its form: with the forward KL, value
and gradient are known in closed form once a token's entropy is, and need no automatic
differentiation. Vanilla KD is the same with every mechanism off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.typing import ArrayLike

from egad_jax.losses.guidance import TokenGuidance
from egad_jax.losses.log_divergences import LogDivergence
from egad_jax.losses.terms import at_temperature, log_pair, loss_and_stats, token_terms
from egad_jax.losses.top_k import Teacher
from egad_jax.types import Stats


@dataclasses.dataclass(frozen=True)
class EntropyGuidedLoss:
  """w(H) f(T) D(T) + ce_weight CE for each token, as a `TokenLoss`.

  Attributes:
    guide: (teacher entropy [n], context) -> the guidance of each token.
    divergence: of log-probabilities.
    ce_weight: of the cross-entropy.
    hard_logits: whether hard tokens keep their divergence.
    is_forward_kl: whether `divergence` is KL(teacher || student), which has the closed form.
  """

  guide: Callable[[jax.Array, Any], TokenGuidance]
  divergence: LogDivergence
  ce_weight: float = 0.0
  hard_logits: bool = True
  is_forward_kl: bool = False

  def __call__(
    self,
    student_logits: ArrayLike,
    teacher_logits: Teacher,
    labels: ArrayLike,
    extras: Mapping[str, jax.Array],
    context: Any,
  ) -> tuple[jax.Array, Stats]:
    """Loss and stats of each token; the only pass over the vocabulary."""
    del extras
    pair = log_pair(student_logits, teacher_logits)
    guidance = self.guide(pair.teacher_entropy, context)
    value = self.divergence(*at_temperature(pair, guidance.temperature))
    return token_terms(
      *(pair, labels, self.weighted(value, guidance)),
      ce_weight=self.ce_weight,
      **_reported(guidance),
    )

  def weighted(self, value: jax.Array, guidance: TokenGuidance) -> jax.Array:
    """A divergence as it enters the loss, [n]."""
    # A factor of 1 is left out, so that what is off costs nothing and changes no bit.
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
    """What `__call__` returns, from what a head has summed over the vocabulary, each [n].

    Args:
      guidance: of the tokens.
      divergence: at the guidance's temperature, not weighted yet.
      cross_entropy: with the labels, nats.
      teacher_entropy: nats, at T = 1.
      student_entropy: nats, at T = 1.
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
