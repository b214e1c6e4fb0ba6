"""Mechanism 3 of EGAD: the dual branch, which gates hard tokens and gives them a feature loss.

The abstract of EGAD (arXiv 2605.01732) says that easy tokens are distilled from logits alone and
hard ones from features too, "deeper"; threshold, gate, distance, weight and projector are our
choices.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.features import (
  FEATURE_DISTANCES,
  init_projector,
  pair_distances,
  project,
  take_tokens,
)
from egad_jax.losses.probabilities import check_mask
from egad_jax.losses.routing import gather_indices, row_capacity
from egad_jax.types import Metrics, Params, Stats

BRANCH_TOKENS = ("hard", "all", "easy")
BRANCH_LOSSES = (*FEATURE_DISTANCES, "pair_distances")
BRANCH_PROJECTORS = ("linear", "none")
PAIR_TOKENS = 128
"""Largest number of tokens of a row that "pair_distances" takes, as its cost is quadratic in it."""
_SMALLEST_SHARE = 1e-3


@dataclasses.dataclass(frozen=True)
class Branch:
  """The dual branch: which tokens are hard, and their loss on features.

  Attributes:
    hard_fraction: in (0, 1]; a token is hard when its position is at least 1 - hard_fraction. Also
      sets how many tokens of a row can get the feature loss, see `row_capacity`.
    threshold: entropy in nats, >= 0, from which on a token is hard; None decides by
      `hard_fraction`.
    softness: s >= 0, in units of position. With 0 a token is hard or easy; otherwise it is hard to
      the degree sigmoid((position - (1 - hard_fraction)) / s), its gate, which tends to that step
      as s goes to 0.
    weight: factor on the feature loss, lambda >= 0.
    hard_logits: whether hard tokens keep their logit loss; if not, the logit loss is multiplied by
      1 - gate.
    loss: feature distance: "cosine" or "normalized_mse", which compare features of one width, or
      "pair_distances", which has no projector.
    projector: the map of the student's features before they are compared: "linear", trained, from
      the student's width to the teacher's, or "none", for models of the same width.
    tokens: which tokens get the feature loss: "hard" (times their gate), or the controls "all" and
      "easy" (times 1 - gate).
  """

  hard_fraction: float = 0.5
  threshold: float | None = None
  softness: float = 0.0
  weight: float = 1.0
  hard_logits: bool = True
  loss: str = "cosine"
  projector: str = "linear"
  tokens: str = "hard"

  def __post_init__(self) -> None:
    if not 0 < self.hard_fraction <= 1:
      raise ValueError(f"hard_fraction must be in (0, 1], got {self.hard_fraction}.")
    if self.threshold is not None and not self.threshold >= 0:
      raise ValueError(f"threshold must be >= 0 nats or None, got {self.threshold}.")
    if not (math.isfinite(self.softness) and self.softness >= 0):
      raise ValueError(f"softness must be >= 0 and finite, got {self.softness}.")
    if not self.weight >= 0:
      raise ValueError(f"weight must be >= 0, got {self.weight}.")
    choices = {
      "loss": BRANCH_LOSSES,
      "projector": BRANCH_PROJECTORS,
      "tokens": BRANCH_TOKENS,
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}."
        )

  def gate(self, position: jax.Array, hard_from: float | jax.Array) -> jax.Array:
    """Returns how hard the tokens at `position` [...] are, in [0, 1]; 0 or 1 without softness."""
    if self.softness == 0:
      return (position >= hard_from).astype(position.dtype)
    return jax.nn.sigmoid((position - hard_from) / self.softness)

  def expected_gate(self, hard_from: float | jax.Array) -> float | jax.Array:
    """Returns the mean of `gate` over positions that are uniform in [0, 1], in closed form."""
    if self.softness == 0:
      return 1 - hard_from
    ends = [(end - hard_from) / self.softness for end in (1.0, 0.0)]
    return self.softness * (jax.nn.softplus(ends[0]) - jax.nn.softplus(ends[1]))

  def init_params(
    self, key: jax.Array, *, student_dim: int, teacher_dim: int, num_taps: int
  ) -> Params:
    """Returns the parameters of the projector, {} if there is none.

    Raises:
      ValueError: features of two widths are compared without a projector.
    """
    if self.loss == "pair_distances":
      return {}
    if self.projector == "none":
      if student_dim != teacher_dim:
        raise ValueError(
          f'projector "none" compares features of one width, got {student_dim} and {teacher_dim}.'
        )
      return {}
    return init_projector(key, student_dim=student_dim, teacher_dim=teacher_dim, num_taps=num_taps)


def hard_from(distribution: EntropyDistribution, branch: Branch) -> float | jax.Array:
  """Returns the position from which on a token is hard (at which the gate is 1/2)."""
  if branch.threshold is None:
    return 1 - branch.hard_fraction
  return distribution.position(jnp.float32(branch.threshold))


def running_feature_loss(
  params: Params,
  student_taps: jax.Array,
  teacher_taps: jax.Array,
  stats: Stats,
  mask: jax.Array,
  *,
  distribution: EntropyDistribution,
  branch: Branch,
) -> tuple[jax.Array, Metrics]:
  """Returns the feature term with the running distribution of entropy; see `Method.feature_loss`.

  In each row, at most `row_capacity` tokens get the term (at most `PAIR_TOKENS` for
  "pair_distances"), those of highest entropy first (lowest, for "easy"). Further tokens are left
  out; the metric `hard_overflow` is the sum of their gates over the sum of all gates.
  """
  mask = check_mask(mask, stats["hard"].shape)
  gate = _feature_gate(stats["hard"], mask, branch)
  hard_share = branch.expected_gate(hard_from(distribution, branch))
  share, static_share = {
    "hard": (hard_share, branch.hard_fraction),
    "all": (1.0, 1.0),
    "easy": (1 - hard_share, 1 - branch.hard_fraction),
  }[branch.tokens]
  capacity = row_capacity(static_share, mask.shape[1])
  share = jnp.maximum(share, _SMALLEST_SHARE)
  if branch.loss == "pair_distances":
    capacity = min(capacity, PAIR_TOKENS)
    # A row whose expected number of tokens exceeds the capacity is expected to fill the capacity.
    tokens = jnp.sum(mask, axis=1)
    share = jnp.minimum(share, capacity / jnp.maximum(tokens, 1).astype(jnp.float32))
  distance, taken = _distances(
    params,
    student_taps,
    teacher_taps,
    gate,
    stats["teacher_entropy"],
    capacity=capacity,
    branch=branch,
  )
  total = branch.weight * jnp.sum(jnp.sum(taken * distance, axis=1) / share)
  count = jnp.sum(gate).astype(jnp.float32)
  dropped = count - jnp.sum(taken).astype(jnp.float32)
  return total, {
    "feature_loss": (jax.lax.stop_gradient(total), jnp.sum(mask).astype(jnp.float32)),
    "hard_overflow": (dropped, count),
  }


def in_batch_feature_loss(
  student_features: ArrayLike | None,
  teacher_features: ArrayLike | None,
  stats: Stats,
  mask: jax.Array,
  branch: Branch | None,
) -> jax.Array:
  """Returns the feature term of `egad_loss`: `weight` times the mean distance, weighted by gate.

  For "pair_distances" a row is the last axis of the mask, and at most `PAIR_TOKENS` tokens of a row
  are taken, the hardest first (the easiest, for "easy").
  """
  if branch is None or student_features is None or teacher_features is None:
    raise ValueError(
      "student_features and teacher_features belong together and need branch; got"
      f" student_features {student_features is not None}, teacher_features"
      f" {teacher_features is not None}, branch {branch}."
    )
  gate = _feature_gate(stats["hard"], mask, branch)
  distance, taken = _distances(
    None,
    _in_rows("student_features", student_features, gate),
    _in_rows("teacher_features", teacher_features, gate),
    _rows(gate),
    _rows(stats["teacher_entropy"]),
    capacity=PAIR_TOKENS if branch.loss == "pair_distances" else mask.size,
    branch=branch,
  )
  # Gates that sum to less than 1 do not scale the loss up.
  return branch.weight * jnp.sum(taken * distance) / jnp.maximum(jnp.sum(taken), 1)


def _distances(
  params: Params | None,
  student_taps: jax.Array,
  teacher_taps: jax.Array,
  gate: jax.Array,
  entropy: jax.Array,
  *,
  capacity: int,
  branch: Branch,
) -> tuple[jax.Array, jax.Array]:
  """Returns the distances of the taken tokens, averaged over taps, and their gates.

  Both have shape [batch, min(capacity, seq)].

  Args:
    params: parameters of the projector; None or {} for features that are compared as they are.
    student_taps: [taps, batch, seq, Ds]; values where the gate is 0 are ignored.
    teacher_taps: [taps, batch, seq, Dt], likewise.
    gate: factor on each token's distance in [0, 1], [batch, seq]; 0 excludes the token.
    entropy: teacher entropy in nats, [batch, seq], the order in which tokens are taken.
    capacity: most tokens taken from a row; if at least seq, nothing is gathered.
    branch: the feature distance and which tokens get it.
  """
  if capacity < gate.shape[1]:
    score = -entropy if branch.tokens == "easy" else entropy
    indices, valid = gather_indices(score, gate > 0, capacity=capacity)
    # Where a row has no further token, the index is that of one whose gate is 0.
    gate = jnp.take_along_axis(gate, indices, axis=1)
    student_taps, teacher_taps = (
      take_tokens(taps, indices, valid) for taps in (student_taps, teacher_taps)
    )
  else:
    inside = (gate > 0)[None, :, :, None]
    student_taps, teacher_taps = (jnp.where(inside, t, 0) for t in (student_taps, teacher_taps))
  if branch.loss == "pair_distances":
    distance = pair_distances(student_taps, teacher_taps, gate[None])
  else:
    projected = project(params, student_taps) if params else student_taps
    distance = FEATURE_DISTANCES[branch.loss](projected, teacher_taps)
  return jnp.mean(distance, axis=0), gate


def _rows(per_token: jax.Array) -> jax.Array:
  """Reshapes [...] to [batch, seq]."""
  return per_token.reshape((-1, *per_token.shape[-1:]) if per_token.ndim else (1, 1))


def _in_rows(name: str, features: ArrayLike, gate: jax.Array) -> jax.Array:
  """Reshapes features [..., dim] or [taps, ..., dim] of tokens [...] to [taps, batch, seq, dim]."""
  features = jnp.asarray(features)
  if features.ndim == gate.ndim + 1:
    features = features[None]
  if features.shape[1:-1] != gate.shape:
    raise ValueError(
      f"{name} must have shape [..., dim] or [taps, ..., dim] around the mask's {gate.shape},"
      f" got {features.shape}."
    )
  return features.reshape((features.shape[0], *_rows(gate).shape, features.shape[-1]))


def _feature_gate(hard: jax.Array, mask: jax.Array, branch: Branch) -> jax.Array:
  """Returns the factor in [0, 1] on each token's feature loss, [...]; 0 outside the mask."""
  gate = {"hard": hard, "all": jnp.ones_like(hard), "easy": 1 - hard}[branch.tokens]
  return jnp.where(mask, gate, 0)
