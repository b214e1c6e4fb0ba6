"""Mechanism 3 of EGAD assembled: the dual branch, its hard tokens and their feature loss.

The abstract of EGAD (arXiv 2605.01732) says that easy tokens are distilled from logits alone and
hard ones from features too, "deeper"; threshold, distance, weight and projector are our choices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.features import FEATURE_DISTANCES, project, take_tokens
from egad_jax.losses.method import Context, Metrics, Params, Stats
from egad_jax.losses.probabilities import check_mask
from egad_jax.losses.reductions import masked_mean, masked_sum
from egad_jax.losses.routing import gather_indices, row_capacity

BRANCH_TOKENS = ("hard", "all", "easy")
_SMALLEST_SHARE = 1e-3


@dataclasses.dataclass(frozen=True)
class Branch:
  """The dual branch: which tokens are hard, and what they get besides their logit loss.

  Attributes:
    hard_fraction: a token is hard when its position is at least 1 - hard_fraction, in (0, 1]; also
      sets the places that a row keeps for its hard tokens.
    threshold: nats; when given, a token is hard when its entropy is at least this instead.
    weight: of the feature loss, lambda >= 0.
    hard_logits: whether hard tokens keep their logit loss (features are then an addition).
    loss: "cosine" or "normalized_mse".
    tokens: which tokens get the feature loss: "hard", or the controls "all" and "easy".
  """

  hard_fraction: float = 0.5
  threshold: float | None = None
  weight: float = 1.0
  hard_logits: bool = True
  loss: str = "cosine"
  tokens: str = "hard"

  def __post_init__(self) -> None:
    if not 0 < self.hard_fraction <= 1:
      raise ValueError(f"hard_fraction must be in (0, 1], got {self.hard_fraction}.")
    if self.threshold is not None and not self.threshold >= 0:
      raise ValueError(f"threshold must be >= 0 nats or None, got {self.threshold}.")
    if not self.weight >= 0:
      raise ValueError(f"weight must be >= 0, got {self.weight}.")
    for name, allowed in {"loss": tuple(FEATURE_DISTANCES), "tokens": BRANCH_TOKENS}.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}."
        )


def hard_from(distribution: EntropyDistribution, branch: Branch) -> float | jax.Array:
  """Returns the position from which on a token is hard."""
  if branch.threshold is None:
    return 1 - branch.hard_fraction
  return distribution.position(jnp.float32(branch.threshold))


def running_feature_loss(
  params: Params,
  student_taps: jax.Array,
  teacher_taps: jax.Array,
  stats: Stats,
  mask: jax.Array,
  context: Context,
  *,
  branch: Branch,
) -> tuple[jax.Array, Metrics]:
  """The feature term of `make_egad`; see `Method.feature_loss`."""
  mask = check_mask(mask, stats["hard"].shape)
  eligible = _feature_tokens(stats["hard"], mask, branch)
  hard_share = 1 - hard_from(context.state.entropy, branch)
  share, static_share = {
    "hard": (hard_share, branch.hard_fraction),
    "all": (1.0, 1.0),
    "easy": (1 - hard_share, 1 - branch.hard_fraction),
  }[branch.tokens]
  capacity = row_capacity(static_share, mask.shape[1])
  score = -stats["teacher_entropy"] if branch.tokens == "easy" else stats["teacher_entropy"]
  if capacity < mask.shape[1]:
    indices, valid = gather_indices(score, eligible, capacity=capacity)
    student_taps = take_tokens(student_taps, indices, valid)
    teacher_taps = take_tokens(teacher_taps, indices, valid)
  else:
    valid = eligible
    student_taps = jnp.where(valid[None, :, :, None], student_taps, 0)
    teacher_taps = jnp.where(valid[None, :, :, None], teacher_taps, 0)
  distance = FEATURE_DISTANCES[branch.loss](project(params, student_taps), teacher_taps)
  total = branch.weight * masked_sum(jnp.mean(distance, axis=0), valid)
  total = total / jnp.maximum(share, _SMALLEST_SHARE)
  count = jnp.sum(eligible).astype(jnp.float32)
  dropped = count - jnp.sum(valid).astype(jnp.float32)
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
  """The feature term of `egad_loss`: the mean over the tokens that get it, weighted."""
  if branch is None or student_features is None or teacher_features is None:
    raise ValueError(
      "student_features and teacher_features belong together and need branch; got"
      f" student_features {student_features is not None}, teacher_features"
      f" {teacher_features is not None}, branch {branch}."
    )
  tokens = _feature_tokens(stats["hard"], mask, branch)
  student = _zero_outside("student_features", student_features, tokens)
  teacher = _zero_outside("teacher_features", teacher_features, tokens)
  distance = FEATURE_DISTANCES[branch.loss](student, teacher)
  return branch.weight * masked_mean(jnp.mean(distance, axis=0), tokens)


def _zero_outside(name: str, features: ArrayLike, tokens: jax.Array) -> jax.Array:
  """Returns features [taps, ..., dim], zero where `tokens` [...] is false, whatever they held."""
  features = jnp.asarray(features)
  if features.ndim == tokens.ndim + 1:
    features = features[None]
  if features.shape[1:-1] != tokens.shape:
    raise ValueError(
      f"{name} must have shape [..., dim] or [taps, ..., dim] around the mask's {tokens.shape},"
      f" got {features.shape}."
    )
  return jnp.where(tokens[None, ..., None], features, 0)


def _feature_tokens(hard: jax.Array, mask: jax.Array, branch: Branch) -> jax.Array:
  """Returns bool, true at the tokens that get the feature loss."""
  if branch.tokens == "all":
    return mask
  return mask & (hard > 0 if branch.tokens == "hard" else hard == 0)
