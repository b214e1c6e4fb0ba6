"""EGAD: entropy-guided adaptive distillation, in-batch form; `make_egad` is the form for training.

The method is from arXiv 2605.01732, of which only the abstract was available: it states three
mechanisms that read the teacher's entropy and gives no formula. Every formula here is our choice
and is documented where it is defined. The loss, with h the position of the teacher's entropy and n
the number of target tokens, is

  sum w(h) T(h)^2 D(T) / n + weight sum g(h) F / sum g(h) + ce_weight sum CE / n

with g the gate of hard tokens, which is 0 or 1 unless the branch has a softness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.branch import Branch, in_batch_feature_loss
from egad_jax.losses.curriculum import Curriculum
from egad_jax.losses.entropy_guided import EntropyGuidedLoss
from egad_jax.losses.guidance import TokenGuidance, in_batch_guidance
from egad_jax.losses.in_batch import in_batch_inputs, in_batch_metrics
from egad_jax.losses.log_divergences import LogDivergence, make_divergence
from egad_jax.losses.probabilities import check_type
from egad_jax.losses.reductions import masked_mean
from egad_jax.losses.temperature import Temperature, as_temperature
from egad_jax.losses.terms import check_ce_weight
from egad_jax.losses.top_k import Teacher


def egad_loss(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  labels: ArrayLike,
  mask: ArrayLike,
  *,
  progress: ArrayLike,
  student_features: ArrayLike | None = None,
  teacher_features: ArrayLike | None = None,
  divergence: str | LogDivergence = "forward_kl",
  divergence_options: Mapping[str, Any] | None = None,
  ce_weight: float = 0.0,
  curriculum: Curriculum | None = Curriculum(),  # noqa: B008
  temperature: Temperature | float = Temperature(),  # noqa: B008
  branch: Branch | None = Branch(),  # noqa: B008
  position: str = "rank",
  elapsed: ArrayLike | None = None,
  where: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """EGAD on whole logits, with the position of each token's entropy taken in its own batch.

  The function is stateless and can be used from any JAX code; the weights have mean exactly 1.
  Training code that splits or shards its batches uses `make_egad`, where no token reads another.

  Args:
    student_logits: float, shape [..., vocab]; leading axes are usually [batch, seq].
    teacher_logits: float, same shape, or a `TopK` of them. Detached.
    labels: int, shape [...], already aligned: the token that the logits at its index predict.
    mask: bool, shape [...], true at tokens that count; logits and features may be NaN elsewhere.
    progress: phi, how far the curriculum has moved from easy to hard tokens, a scalar in [0, 1].
    student_features: hidden states, already projected, float, [..., dim] or [taps, ..., dim]; None
      for no feature loss.
    teacher_features: hidden states, same shape (for branch.loss "pair_distances" the widths may
      differ); None if `student_features` is. Detached.
    divergence: a key of `DIVERGENCES`, or a function, see `make_divergence`.
    divergence_options: hyper-parameters of the divergence; None for its defaults.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    curriculum: mechanism 1, the token weights; None for a weight of 1.
    temperature: mechanism 2; its position "cdf" means the in-batch `position` here; its kind "mean"
      and its compensation "mean_norm" use the mean over the masked tokens.
    branch: mechanism 3, the gate and feature loss of hard tokens; None for neither. The feature
      term, a mean over the tokens that get it, needs features. A threshold compares entropies.
    position: kind of `entropy_position`: "rank", "minmax" or "median_ratio".
    elapsed: how far along the training the step is, a scalar in [0, 1]; only `temperature.anneal`
      reads it, and needs it.
    where: bool [vocab], true at real vocabulary entries; None counts all.

  Returns:
    The loss, a scalar (0 when nothing is masked in), and metrics, detached scalars:
    distillation_loss, cross_entropy, feature_loss, teacher_entropy, student_entropy,
    temperature_mean, weight_mean and hard_fraction.

  Raises:
    TypeError: wrong dtype.
    ValueError: shapes that do not match, names or ranges.

  >>> student = jnp.array([[[1.0, 1.0, 1.0, 0.0]]])
  >>> teacher = jnp.array([[[2.0, 1.0, 0.0, -1.0]]])
  >>> labels, mask = jnp.array([[0]]), jnp.array([[True]])
  >>> loss, metrics = egad_loss(student, teacher, labels, mask, progress=0.5)
  >>> round(float(loss), 4), round(float(metrics["teacher_entropy"]), 4)
  (0.2988, 0.9475)
  """
  temperature = check_options(ce_weight, curriculum, temperature, branch)
  student_logits, teacher_logits, labels, mask = in_batch_inputs(
    student_logits, teacher_logits, labels, mask, where
  )

  def guide(entropy: jax.Array, context: None) -> TokenGuidance:
    del context
    return in_batch_guidance(
      entropy,
      mask=mask,
      progress=progress,
      elapsed=elapsed,
      curriculum=curriculum,
      temperature=temperature,
      branch=branch,
      kind=position,
    )

  token_loss = EntropyGuidedLoss(
    guide,
    make_divergence(divergence, divergence_options),
    ce_weight=ce_weight,
    hard_logits=branch is None or branch.hard_logits,
    compensation=temperature.compensation if temperature.reads_gradient else None,
  )
  loss, stats = token_loss(student_logits, teacher_logits, labels, {}, None)
  feature_loss = jnp.zeros((), loss.dtype)
  if student_features is not None or teacher_features is not None:
    feature_loss = in_batch_feature_loss(student_features, teacher_features, stats, mask, branch)
  metrics = in_batch_metrics(stats, mask) | {"feature_loss": jax.lax.stop_gradient(feature_loss)}
  return masked_mean(loss, mask) + feature_loss, metrics


def check_options(
  ce_weight: float,
  curriculum: Curriculum | None,
  temperature: Temperature | float,
  branch: Branch | None,
) -> Temperature:
  check_ce_weight(ce_weight)
  if curriculum is not None:
    check_type("curriculum", curriculum, Curriculum)
  if branch is not None:
    check_type("branch", branch, Branch)
  return as_temperature(temperature)
