"""Values that configs are made of, and a config as plain JSON values."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import jax.numpy as jnp
import ml_collections

from egad_jax.errors import InputError

Config: TypeAlias = ml_collections.ConfigDict

# Prefixes of sources that are made and not read: random:ARCHITECTURE and train:N.
RANDOM, TRAIN = "random:", "train:"
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def plain(config: Config) -> dict[str, Any]:
  """The config as JSON values; a `ConfigDict` made from them equals the config."""
  return json.loads(json.dumps(config.to_dict()))


def name_values(key: str, text: str) -> dict[str, str]:
  """Parses "name=value,name=value" into {name: value}; "" gives {}.

  Args:
    key: key of the config that holds the text, for messages.
    text: the text to parse.

  Raises:
    InputError: the text has another form, or gives a name twice.
  """
  values: dict[str, str] = {}
  for entry in text.split(",") if text.strip() else ():
    name, separator, value = (part.strip() for part in entry.partition("="))
    if not (name and separator):
      raise InputError(f"config.{key} must be name=value,name=value; got {entry!r}.")
    if name in values:
      raise InputError(f"config.{key}: {name} is given twice.")
    values[name] = value
  return values
