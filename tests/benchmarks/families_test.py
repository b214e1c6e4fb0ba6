"""The models of the table of families, and how it tells the attention of a compiled step."""

from __future__ import annotations

import pytest

from benchmarks.families import attention_of
from benchmarks.family_models import MODELS
from egad_jax.models import family


def test_one_model_of_every_family():
  assert set(MODELS) == set(family.families())


@pytest.mark.parametrize("name", MODELS)
def test_the_keys_are_those_of_its_family(name):
  data = MODELS[name][1] | {"model_type": name}
  config = family.config_from_hf(MODELS[name][0], data)
  assert config.family == name
  assert family.unread_keys(data) == []


@pytest.mark.parametrize(
  ("kernels", "wanted"),
  [
    ({"splash_mha_fwd": 4, "splash_mqa_fwd_residuals": 4, "splash_mha_dkv": 2}, "splash"),
    ({"splash_mha_fwd": 4, "splash_mha_dkv": 2}, "splash in 4 and 2 calls"),
    ({"logits_gradient": 3}, "xla"),
  ],
)
def test_attention_by_calls_of_its_kernels(kernels, wanted):
  assert attention_of(kernels, {"teacher": 4, "student": 2}) == wanted
