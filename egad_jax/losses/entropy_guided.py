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

from egad_jax.losses.log_divergences import LogDivergence
from egad_jax.losses.method import Stats
from egad_jax.losses.placement import Placement
from egad_jax.losses.terms import at_temperature, log_pair, loss_and_stats, token_terms
from egad_jax.losses.top_k import Teacher


@dataclasses.dataclass(frozen=True)
class EntropyGuidedLoss:
  """w(H) f(T) D(T) + ce_weight CE for each token, as a `TokenLoss`.

  Attributes:
    place: (teacher entropy [n], context) -> what the mechanisms make of it.
    divergence: of log-probabilities.
    ce_weight: of the cross-entropy.
    hard_logits: whether hard tokens keep their divergence.
    is_forward_kl: whether `divergence` is KL(teacher || student), which has the closed form.
  """

  place: Callable[[jax.Array, Any], Placement]
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
    placement = self.place(pair.teacher_entropy, context)
    value = self.divergence(*at_temperature(pair, placement.temperature))
    return token_terms(
      *(pair, labels, self.weighted(value, placement)),
      ce_weight=self.ce_weight,
      **_reported(placement),
    )

  def weighted(self, value: jax.Array, placement: Placement) -> jax.Array:
    """A divergence as it enters the loss, [n]."""
    # A factor of 1 is left out, so that what is off costs nothing and changes no bit.
    if not (isinstance(placement.factor, float) and placement.factor == 1):
      value = value * placement.factor
    if placement.weight is not None:
      value = value * placement.weight
    if placement.hard is not None and not self.hard_logits:
      value = value * (1 - placement.hard)
    return value

  def of_sums(
    self,
    placement: Placement,
    *,
    divergence: jax.Array,
    cross_entropy: jax.Array,
    teacher_entropy: jax.Array,
    student_entropy: jax.Array,
  ) -> tuple[jax.Array, Stats]:
    """What `__call__` returns, from what a head has summed over the vocabulary, each [n].

    Args:
      placement: of the tokens.
      divergence: at the placement's temperature, not weighted yet.
      cross_entropy: with the labels, nats.
      teacher_entropy: nats, at T = 1.
      student_entropy: nats, at T = 1.
    """
    return loss_and_stats(
      self.weighted(divergence, placement),
      cross_entropy=cross_entropy,
      teacher_entropy=teacher_entropy,
      student_entropy=student_entropy,
      ce_weight=self.ce_weight,
      **_reported(placement),
    )


def _reported(placement: Placement) -> dict[str, Any]:
  return {
    "temperature": placement.temperature,
    "weight": 1.0 if placement.weight is None else placement.weight,
    "hard": 0.0 if placement.hard is None else placement.hard,
  }
