"""A config as plain values and back."""

from __future__ import annotations

from configs import tiny
from egad_jax import build


def test_a_config_is_json_and_back():
  config = tiny.get_config()
  again = build.from_plain(build.plain(config))
  assert build.plain(again) == build.plain(config)
  build.validate(again)
