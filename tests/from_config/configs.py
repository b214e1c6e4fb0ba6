"""Configs to validate and build."""

from __future__ import annotations

from configs import tiny


def changed(**values):
  """The tiny config with values set; `a__b` is the key a.b."""
  config = tiny.get_config()
  for key, value in values.items():
    config.update_from_flattened_dict({key.replace("__", "."): value})
  return config
