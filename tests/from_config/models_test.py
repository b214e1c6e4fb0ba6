"""From a config to tokenizer, teacher and student."""

from __future__ import annotations

import dataclasses

import pytest

from egad_jax import from_config
from egad_jax.errors import InputError
from egad_jax.from_config import models
from egad_jax.models.config import DecoderConfig, LayerKind


@pytest.mark.parametrize(
  ("layers", "pairs"),
  [
    ("last", ((4, 30),)),
    ("uniform:4", ((1, 8), (2, 15), (3, 22), (4, 30))),
    ("2:12,4:30", ((2, 12), (4, 30))),
    ("all", ((1, 8), (2, 15), (3, 22), (4, 30))),
  ],
)
def test_layer_pairs(layers, pairs):
  assert from_config.layer_pairs(layers, 4, 30) == pairs


def test_all_layers_of_a_student_made_of_the_teachers():
  kept = (0, 12, 20, 29)
  assert from_config.layer_pairs("all", 4, 30, kept) == ((1, 12), (2, 20), (3, 29), (4, 30))


def test_all_layers_of_a_student_deeper_than_its_teacher():
  assert from_config.layer_pairs("all", 4, 2) == ((2, 1), (4, 2))


@pytest.mark.parametrize("layers", ["", "first", "uniform:", "uniform:0", "1", "1:2:3", "a:b"])
def test_layer_pairs_that_cannot_be_read(layers):
  with pytest.raises(InputError, match=f"last, all, uniform:N or S:T,S:T; got '{layers}'"):
    from_config.layer_pairs(layers, 4, 30)


@pytest.mark.parametrize(
  ("layers", "message"),
  [
    ("5:30", r"different student layers between 1 and 4; got '5:30'.* student's 5\."),
    ("0:1", r"different student layers between 1 and 4"),
    ("4:31", r"different teacher layers between 1 and 30; .* teacher's 31\."),
    ("1:2,1:3", r"different student layers .* student's 1, 1\."),
    ("1:3,2:3", r"different teacher layers .* teacher's 3, 3\."),
    ("uniform:5", r"different student layers between 1 and 4"),
  ],
)
def test_layer_pairs_that_do_not_exist(layers, message):
  with pytest.raises(InputError, match=message):
    from_config.layer_pairs(layers, 4, 30)


def test_a_smaller_model_of_a_family_keeps_its_rules():
  local = LayerKind(window=8)
  gemma = DecoderConfig(
    vocab_size=64,
    dim=64,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=96,
    pattern=(local,) * 5 + (LayerKind(),),
    embedding_scale=8.0,
  )
  small = models._replace(gemma, num_layers=3, dim=16)
  assert (small.pattern, small.embedding_scale, small.head_dim) == ((local,) * 3, 4.0, 4)
  other = models._replace(dataclasses.replace(gemma, embedding_scale=12.0), dim=16, num_layers=0)
  assert (other.embedding_scale, other.num_layers, other.pattern) == (12.0, 8, gemma.pattern)
