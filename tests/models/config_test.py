"""Tests of the architecture's checks."""

from __future__ import annotations

import dataclasses

import pytest

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig, LayerKind


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"vocab_size": 0}, "vocab_size must be at least 1; got 0"),
    ({"num_heads": 4}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
    ({"head_dim": 5}, "head_dim must be even .* got 5"),
    ({"pattern": (LayerKind(), LayerKind(window=8))}, r"num_layers \(3\) must be a multiple"),
    ({"pattern": ()}, "layer pattern"),
  ],
)
def test_numbers_that_do_not_fit_are_refused(config, changes, message):
  with pytest.raises(InputError, match=message):
    dataclasses.replace(config, **changes)


def test_pattern_repeats_over_depth():
  local, full = LayerKind(window=4), LayerKind(rope=False)
  config = DecoderConfig(
    vocab_size=8,
    dim=8,
    num_layers=6,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=8,
    pattern=(local, local, full),
  )
  assert config.repeats == 2
  assert [config.kind(i) for i in range(6)] == [local, local, full] * 2
