"""Tests of a config as plain values."""

from __future__ import annotations

import ml_collections

from configs import tiny
from egad_jax import from_config


def test_a_config_is_json_and_back():
  config = tiny.get_config()
  again = ml_collections.ConfigDict(from_config.plain(config))
  assert from_config.plain(again) == from_config.plain(config)
  from_config.validate(again)
