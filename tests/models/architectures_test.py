"""Tests of the table of architectures."""

from __future__ import annotations

import jax
import pytest

from egad_jax.errors import InputError
from egad_jax.models.architectures import ARCHITECTURES, architecture
from egad_jax.models.model import make_model


@pytest.mark.parametrize(
  ("name", "millions"),
  [
    ("smollm2-135m", 134.5),
    ("smollm2-360m", 361.8),
    ("smollm2-1.7b", 1711.4),
    ("llama-3.2-1b", 1235.8),
    ("llama-3.2-3b", 3212.7),
    ("llama-3.1-8b", 8030.3),
    ("llama-3.1-70b", 70553.7),
    ("qwen3-0.6b", 596.0),
    ("qwen3-1.7b", 1720.6),
    ("qwen3-4b", 4022.5),
    ("qwen3-8b", 8190.7),
    ("qwen3-32b", 32762.1),
  ],
)
def test_parameters_are_as_many_as_published(name, millions):
  params = jax.eval_shape(make_model(architecture(name)).init, jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_unknown_name_lists_the_known_ones():
  with pytest.raises(InputError, match=r'"smollm2-135M".*known: .*tiny.*mean "smollm2-135m"'):
    architecture("smollm2-135M")


def test_every_architecture_is_whole():
  for config in ARCHITECTURES.values():
    assert config.num_layers == config.repeats * len(config.pattern)
