"""Values that configs are made of, and a config as plain JSON values."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import jax.numpy as jnp
import ml_collections

Config: TypeAlias = ml_collections.ConfigDict

# Prefixes of sources that are made and not read: random:ARCHITECTURE and train:N.
RANDOM, TRAIN = "random:", "train:"
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def plain(config: Config) -> dict[str, Any]:
  """The config as JSON values; a `ConfigDict` made from them equals the config."""
  return json.loads(json.dumps(config.to_dict()))
