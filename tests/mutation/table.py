"""All mutations."""

from __future__ import annotations

from tests.mutation import (
  mutations_adakd,
  mutations_core,
  mutations_distribution,
  mutations_divergences,
  mutations_egad,
  mutations_features,
  mutations_head,
  mutations_methods,
  mutations_relations,
  mutations_schedule,
  mutations_tokenizers,
  mutations_top_k,
)
from tests.mutation.mutant import Equivalent, Mutation

_TOPICS = (
  mutations_core,
  mutations_divergences,
  mutations_top_k,
  mutations_distribution,
  mutations_schedule,
  mutations_egad,
  mutations_features,
  mutations_adakd,
  mutations_methods,
  mutations_relations,
  mutations_tokenizers,
  mutations_head,
)

MUTATIONS: tuple[Mutation, ...] = sum((topic.MUTATIONS for topic in _TOPICS), ())
EQUIVALENTS: tuple[Equivalent, ...] = sum((topic.EQUIVALENTS for topic in _TOPICS), ())
