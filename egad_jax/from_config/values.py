"""A config as plain values."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import jax.numpy as jnp
import ml_collections

Config: TypeAlias = ml_collections.ConfigDict

# How a source says that it is made, not read: random:ARCHITECTURE, train:N.
RANDOM, TRAIN = "random:", "train:"
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def plain(config: Config) -> dict[str, Any]:
  """The config as JSON values; `ConfigDict` of them is the config again."""
  return json.loads(json.dumps(config.to_dict()))
