from __future__ import annotations

import pytest

from egad_jax import methods
from egad_jax.losses import Branch
from egad_jax.methods import METHODS, Method, make_method
from egad_jax.methods.table import TWO_TOKENIZERS

IDENTITY = ([[0], [1]], [[1.0], [1.0]])


def test_table():
  assert set(METHODS) == {
    "egad",
    "vanilla_kd",
    "adakd",
    "aekt",
    "ea_kd",
    "se_kd",
    "taid",
    "trg",
    "x_token",
  }
  for name, make in METHODS.items():
    assert getattr(methods, f"make_{name}") is make
    inputs = {"projection": IDENTITY} if name == "x_token" else {}
    assert isinstance(make_method(name, **inputs), Method)


def test_options_arrive():
  assert make_method("egad", branch=None).feature_loss is None
  assert make_method("egad", branch=Branch()).feature_loss is not None


def test_unknown_name_lists_the_names():
  with pytest.raises(ValueError, match=r"must be one of egad, vanilla_kd, .* x_token, got 'edag'"):
    make_method("edag")


def test_unknown_option():
  with pytest.raises(TypeError, match="tempreature"):
    make_method("vanilla_kd", tempreature=2.0)


def test_the_methods_for_two_tokenizers_take_a_projection():
  assert set(TWO_TOKENIZERS) == {"x_token"}
