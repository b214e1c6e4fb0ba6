"""A config as plain values and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import ml_collections

Config: TypeAlias = ml_collections.ConfigDict

# How a source says that it is made, not read: random:ARCHITECTURE, train:N.
RANDOM, TRAIN = "random:", "train:"
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def plain(config: Config) -> dict[str, Any]:
  """The config as JSON values."""
  return json.loads(json.dumps(config.to_dict()))


def from_plain(values: Mapping[str, Any]) -> Config:
  """The config that `plain` was called with."""
  return ml_collections.ConfigDict(values)
