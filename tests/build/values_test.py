"""Tests of a config as plain values."""

from __future__ import annotations

import ml_collections

from configs import tiny
from egad_jax import build


def test_a_config_is_json_and_back():
  config = tiny.get_config()
  again = ml_collections.ConfigDict(build.plain(config))
  assert build.plain(again) == build.plain(config)
  build.validate(again)
