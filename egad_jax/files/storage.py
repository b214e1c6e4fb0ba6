"""Whole files on a local disk or in an object store, which can neither append nor rename."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

from etils import epath

from egad_jax.files.owned import write_text
from egad_jax.files.paths import is_local
from egad_jax.files.regular_file import read_regular


def finite_or_none(value: Any) -> Any:
  """JSON has no NaN or infinity: they become null, at any depth."""
  if isinstance(value, Mapping):
    return {k: finite_or_none(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [finite_or_none(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: epath.Path, value: Any) -> None:
  """`write_text` of a JSON value, NaN as null."""
  write_text(path, json.dumps(finite_or_none(value), indent=2, ensure_ascii=False) + "\n")


def move(directory: epath.Path, target: epath.Path) -> None:
  """Renames a directory; in an object store copies its objects and deletes them."""
  if is_local(directory):
    directory.rename(target)
    return
  _copy(directory, target)
  directory.rmtree()


def _copy(directory: epath.Path, target: epath.Path) -> None:
  for source in directory.iterdir():
    if source.is_dir():
      _copy(source, target / source.name)
    else:
      target.mkdir(parents=True, exist_ok=True)
      source.copy(target / source.name)


def is_link(path: epath.Path) -> bool:
  """Whether a path is a symbolic link; object stores have none."""
  return is_local(path) and os.path.islink(path)


def delete(directory: epath.Path) -> None:
  """Deletes a directory as far as it can be; links in it go, what they lead to stays."""
  if is_local(directory):
    shutil.rmtree(directory, ignore_errors=True)
  elif directory.exists():
    directory.rmtree()


def read_json(path: epath.Path) -> Any:
  """The value of a JSON file, None if there is no such file.

  Raises:
    InputError: it is no file, cannot be read, or is too large to be one of a run.
    ValueError: it is no JSON.
  """
  return json.loads(read_regular(path)) if path.exists() else None
