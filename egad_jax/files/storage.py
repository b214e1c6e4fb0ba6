"""Whole files on a local disk or in an object store; a store can neither append nor rename."""

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
  """Replaces NaN and infinity, which JSON lacks, by None, at any depth."""
  if isinstance(value, Mapping):
    return {k: finite_or_none(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [finite_or_none(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: epath.Path, value: Any) -> None:
  """Writes a value as JSON, atomically on a disk; NaN and infinity become null."""
  write_text(path, json.dumps(finite_or_none(value), indent=2, ensure_ascii=False) + "\n")


def move(directory: epath.Path, target: epath.Path) -> None:
  """Renames a directory; in an object store, copies its objects and deletes the originals."""
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
  """Deletes a directory as far as possible on a disk; targets of links in it stay."""
  if is_local(directory):
    shutil.rmtree(directory, ignore_errors=True)
  elif directory.exists():
    directory.rmtree()


def read_json(path: epath.Path) -> Any:
  """The value of a JSON file; None if there is no such file.

  Raises:
    InputError: the path is not a regular file, cannot be read, or has over `MOST_BYTES` bytes.
    ValueError: the content is not JSON.
  """
  return json.loads(read_regular(path)) if path.exists() else None
