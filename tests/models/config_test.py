"""Tests of the architecture's checks."""

from __future__ import annotations

import dataclasses

import pytest

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig, Experts, LayerKind, shortest_pattern


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"vocab_size": 0}, "vocab_size must be at least 1; got 0"),
    ({"num_heads": 4}, r"num_heads \(4\) must be a multiple of num_kv_heads \(3\)"),
    ({"head_dim": 5}, "head_dim must be even .* got 5"),
    ({"pattern": (LayerKind(),) * 4}, r"must have 1 to num_layers \(3\) kinds; got 4"),
    ({"activation": "relu"}, 'activation must be one of silu, gelu_tanh, gelu; got "relu"'),
    ({"experts": Experts(2, 3, 8)}, r"experts.chosen must be from 1 to experts.count \(2\); got 3"),
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


def test_the_last_period_may_be_partial(config):
  local, full = LayerKind(window=4), LayerKind()
  config = dataclasses.replace(config, num_layers=8, pattern=(local, local, full))
  assert (config.repeats, config.tail) == (2, (local, local))
  assert [config.kind(i) for i in (2, 5, 6, 7)] == [full, full, local, local]
  assert [config.place(i) for i in (0, 5, 6, 7)] == [
    ("layers", 0, 0),
    ("layers", 2, 1),
    ("tail", 0, 0),
    ("tail", 1, 0),
  ]
  assert shortest_pattern([config.kind(i) for i in range(8)]) == config.pattern


def test_heads_of_odd_width_need_layers_without_rotation(config):
  made = dataclasses.replace(config, head_dim=5, pattern=(LayerKind(rope=False),))
  assert made.head_dim == 5
