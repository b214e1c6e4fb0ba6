"""Mechanism 3 of EGAD assembled: the dual branch, its hard tokens and their feature loss.

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
PAIR_TOKENS = 128
"""Most tokens of a row that "pair_distances" takes: its cost is quadratic in them."""
_SMALLEST_SHARE = 1e-3


@dataclasses.dataclass(frozen=True)
class Branch:
  """The dual branch: which tokens are hard, and what they get besides their logit loss.

  Attributes:
    hard_fraction: a token is hard when its position is at least 1 - hard_fraction, in (0, 1]; also
      sets the places that a row keeps for its hard tokens.
    threshold: nats; when given, a token is hard when its entropy is at least this instead.
    softness: s >= 0, in positions. 0 is the hard threshold; otherwise a token is hard to the degree
      sigmoid((position - (1 - hard_fraction)) / s), its gate, which tends to the hard threshold
      as s goes to 0.
    weight: of the feature loss, lambda >= 0.
    hard_logits: whether hard tokens keep their logit loss (features are then an addition);
      without, the logit loss is multiplied by 1 - gate.
    loss: "cosine" or "normalized_mse", through a projector; or "pair_distances", without one.
    tokens: which tokens get the feature loss: "hard" (times their gate), or the controls "all" and
      "easy" (times 1 - gate).
  """

  hard_fraction: float = 0.5
  threshold: float | None = None
  softness: float = 0.0
  weight: float = 1.0
  hard_logits: bool = True
  loss: str = "cosine"
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
    for name, allowed in {"loss": BRANCH_LOSSES, "tokens": BRANCH_TOKENS}.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}."
        )

  def gate(self, position: jax.Array, hard_from: float | jax.Array) -> jax.Array:
    """How hard the tokens at `position` [...] are, in [0, 1]; 0 or 1 without softness."""
    if self.softness == 0:
      return (position >= hard_from).astype(position.dtype)
    return jax.nn.sigmoid((position - hard_from) / self.softness)

  def expected_gate(self, hard_from: float | jax.Array) -> float | jax.Array:
    """The mean of `gate` over positions that are uniform in [0, 1], in closed form."""
    if self.softness == 0:
      return 1 - hard_from
    ends = [(end - hard_from) / self.softness for end in (1.0, 0.0)]
    return self.softness * (jax.nn.softplus(ends[0]) - jax.nn.softplus(ends[1]))

  def init_params(
    self, key: jax.Array, *, student_dim: int, teacher_dim: int, num_taps: int
  ) -> Params:
    """The projector, or {} for a loss that compares each model with itself."""
    if self.loss == "pair_distances":
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
  """The feature term against the running distribution of entropy; see `Method.feature_loss`.

  A row keeps `row_capacity` places (at most `PAIR_TOKENS` for "pair_distances") for the tokens of
  highest entropy (lowest, for "easy"). Tokens without a place drop out; the metric
  `hard_overflow` is their gates' sum over that of all.
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
    # Where a row has fewer places than tokens to expect, the places are what to expect.
    tokens = jnp.sum(mask, axis=1)
    share = jnp.minimum(share, capacity / jnp.maximum(tokens, 1).astype(jnp.float32))
  distance, taken = _distances(
    *(params, student_taps, teacher_taps, gate, stats["teacher_entropy"]),
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
  """The feature term of `egad_loss`: the mean over the tokens that get it, by gate, weighted.

  A row, for "pair_distances", is the mask's last axis; it takes its `PAIR_TOKENS` hardest tokens.
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
    *(_rows(gate), _rows(stats["teacher_entropy"])),
    capacity=PAIR_TOKENS if branch.loss == "pair_distances" else mask.size,
    branch=branch,
  )
  # Gates that sum to less than one token's are no reason to scale its loss up.
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
  """Distances [batch, places], mean over taps, and the gates of the tokens at those places.

  Args:
    params: the projector, or None for features that are projected already.
    student_taps: [taps, batch, seq, Ds]; whatever they hold where the gate is 0 is ignored.
    teacher_taps: [taps, batch, seq, Dt], likewise.
    gate: [batch, seq].
    entropy: teacher's, [batch, seq]; says who gets a place.
    capacity: places per row; with as many as tokens nothing is gathered.
    branch: the options.
  """
  if capacity < gate.shape[1]:
    score = -entropy if branch.tokens == "easy" else entropy
    indices, valid = gather_indices(score, gate > 0, capacity=capacity)
    gate = jnp.where(valid, jnp.take_along_axis(gate, indices, axis=1), 0)
    student_taps, teacher_taps = (
      take_tokens(taps, indices, valid) for taps in (student_taps, teacher_taps)
    )
  else:
    inside = (gate > 0)[None, :, :, None]
    student_taps, teacher_taps = (jnp.where(inside, t, 0) for t in (student_taps, teacher_taps))
  if branch.loss == "pair_distances":
    distance = pair_distances(student_taps, teacher_taps, gate[None])
  else:
    projected = student_taps if params is None else project(params, student_taps)
    distance = FEATURE_DISTANCES[branch.loss](projected, teacher_taps)
  return jnp.mean(distance, axis=0), gate


def _rows(per_token: jax.Array) -> jax.Array:
  """Returns [...] as [batch, seq]."""
  return per_token.reshape((-1, *per_token.shape[-1:]) if per_token.ndim else (1, 1))


def _in_rows(name: str, features: ArrayLike, gate: jax.Array) -> jax.Array:
  """Returns features [..., dim] or [taps, ..., dim], of tokens [...] as [taps, batch, seq, dim]."""
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
  """What a token's feature loss is multiplied by, in [0, 1]; 0 outside the mask."""
  gate = {"hard": hard, "all": jnp.ones_like(hard), "easy": 1 - hard}[branch.tokens]
  return jnp.where(mask, gate, 0)
