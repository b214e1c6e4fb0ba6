"""Distillation losses as pure functions on arrays; imports jax alone.

Arrays first, student before teacher, hyper-parameters keyword-only. Per-token results have the
logits' leading axes and are not reduced; only `egad_loss`, the reductions and the in-batch forms
take a mask. Gradient flows to the student only.
"""

from __future__ import annotations

from egad_jax.losses.branch import Branch
from egad_jax.losses.curriculum import Curriculum, curriculum_weights
from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.divergences import (
  DIVERGENCES,
  adaptive_kl,
  alpha_beta,
  forward_kl,
  jensen_shannon,
  non_target_class_kl,
  reverse_kl,
  skew_forward_kl,
  skew_reverse_kl,
  target_class_kl,
  token_wise_kl,
  total_variation,
)
from egad_jax.losses.egad import egad_loss, make_egad, make_vanilla_kd
from egad_jax.losses.entropy import entropy_position, token_entropy
from egad_jax.losses.features import FEATURE_DISTANCES, cosine_distance, normalized_mse
from egad_jax.losses.method import Context, Method, SerialHead, State
from egad_jax.losses.methods import METHODS, make_method
from egad_jax.losses.reductions import masked_mean, masked_sum
from egad_jax.losses.routing import hard_tokens
from egad_jax.losses.temperature import Temperature, adaptive_temperature, compensation_factor

__all__ = [
  "DIVERGENCES",
  "FEATURE_DISTANCES",
  "METHODS",
  "Branch",
  "Context",
  "Curriculum",
  "EntropyDistribution",
  "Method",
  "SerialHead",
  "State",
  "Temperature",
  "adaptive_kl",
  "adaptive_temperature",
  "alpha_beta",
  "compensation_factor",
  "cosine_distance",
  "curriculum_weights",
  "egad_loss",
  "entropy_position",
  "forward_kl",
  "hard_tokens",
  "jensen_shannon",
  "make_egad",
  "make_method",
  "make_vanilla_kd",
  "masked_mean",
  "masked_sum",
  "non_target_class_kl",
  "normalized_mse",
  "reverse_kl",
  "skew_forward_kl",
  "skew_reverse_kl",
  "target_class_kl",
  "token_entropy",
  "token_wise_kl",
  "total_variation",
]
