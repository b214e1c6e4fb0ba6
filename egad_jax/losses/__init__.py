"""Distillation losses as pure functions on arrays; this package imports no library but jax.

Functions take arrays first, the student's before the teacher's, and hyper-parameters by keyword.
Per-token results have the logits' leading axes and are not reduced; the in-batch forms of whole
methods (`egad_loss`, `adakd_loss`, ...) and the reductions take a mask. Gradient flows to the
student only.
"""

from __future__ import annotations

from egad_jax.losses.adakd import adakd_loss
from egad_jax.losses.branch import Branch
from egad_jax.losses.cross_tokenizer import (
  CrossTokenizer,
  ProjectionArrays,
  common_tokens,
  cross_tokenizer_loss,
  universal_logit_distance,
)
from egad_jax.losses.curriculum import Curriculum, curriculum_weights
from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.divergences import (
  DIVERGENCES,
  adaptive_kl,
  alpha_beta,
  forward_kl,
  hellinger,
  jensen_shannon,
  non_target_class_kl,
  reverse_kl,
  skew_forward_kl,
  skew_reverse_kl,
  target_class_kl,
  token_wise_kl,
  total_variation,
)
from egad_jax.losses.egad import egad_loss
from egad_jax.losses.entropy import entropy_position, token_entropy
from egad_jax.losses.entropy_weighting import ea_kd_loss, se_kd_loss
from egad_jax.losses.explicit_knowledge import (
  ExplicitKnowledge,
  explicit_knowledge_loss,
)
from egad_jax.losses.features import (
  FEATURE_DISTANCES,
  cosine_distance,
  normalized_mse,
  pair_distances,
)
from egad_jax.losses.focus import Focus, FocusState
from egad_jax.losses.reductions import masked_mean, masked_sum
from egad_jax.losses.relation_graph import RelationGraph, relation_graph_loss
from egad_jax.losses.routing import hard_tokens
from egad_jax.losses.spans import span_log_average, span_mask
from egad_jax.losses.taid import Interpolation, InterpolationState, taid_loss
from egad_jax.losses.temperature import Temperature, adaptive_temperature, compensation_factor
from egad_jax.losses.top_k import (
  TopK,
  coarse_pair,
  entropy_bracket,
  mask_top_k,
  spread_tail,
  top_k_teacher,
)

__all__ = [
  "DIVERGENCES",
  "FEATURE_DISTANCES",
  "Branch",
  "CrossTokenizer",
  "Curriculum",
  "EntropyDistribution",
  "ExplicitKnowledge",
  "Focus",
  "FocusState",
  "Interpolation",
  "InterpolationState",
  "ProjectionArrays",
  "RelationGraph",
  "Temperature",
  "TopK",
  "adakd_loss",
  "adaptive_kl",
  "adaptive_temperature",
  "alpha_beta",
  "coarse_pair",
  "common_tokens",
  "compensation_factor",
  "cosine_distance",
  "cross_tokenizer_loss",
  "curriculum_weights",
  "ea_kd_loss",
  "egad_loss",
  "entropy_bracket",
  "entropy_position",
  "explicit_knowledge_loss",
  "forward_kl",
  "hard_tokens",
  "hellinger",
  "jensen_shannon",
  "mask_top_k",
  "masked_mean",
  "masked_sum",
  "non_target_class_kl",
  "normalized_mse",
  "pair_distances",
  "relation_graph_loss",
  "reverse_kl",
  "se_kd_loss",
  "skew_forward_kl",
  "skew_reverse_kl",
  "span_log_average",
  "span_mask",
  "spread_tail",
  "taid_loss",
  "target_class_kl",
  "token_entropy",
  "token_wise_kl",
  "top_k_teacher",
  "total_variation",
  "universal_logit_distance",
]
