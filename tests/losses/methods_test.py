from __future__ import annotations

import pytest

from egad_jax.losses import METHODS, Branch, Method, make_egad, make_method, make_vanilla_kd


def test_table():
  assert {"egad": make_egad, "vanilla_kd": make_vanilla_kd} == METHODS
  for name in METHODS:
    assert isinstance(make_method(name), Method)


def test_options_arrive():
  assert make_method("egad", branch=None).feature_loss is None
  assert make_method("egad", branch=Branch()).feature_loss is not None


def test_unknown_name_lists_the_names():
  with pytest.raises(ValueError, match="method must be one of egad, vanilla_kd, got 'edag'"):
    make_method("edag")


def test_unknown_option():
  with pytest.raises(TypeError, match="tempreature"):
    make_method("vanilla_kd", tempreature=2.0)
