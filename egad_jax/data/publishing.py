"""Directories that are either whole or absent, made once however many processes ask for them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import filelock
from etils import epath

from egad_jax.errors import InputError
from egad_jax.regular_file import read_regular

MANIFEST = "manifest.json"
_UNWRITABLE = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.EEXIST,
  errno.ENOTDIR,
)


def digest(content: Any) -> str:
  """SHA-256 of a JSON-like value, in hexadecimal."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def publish(
  parent: epath.Path, name: str, build: Callable[[epath.Path], dict[str, Any]]
) -> epath.Path:
  """Returns the directory `parent/name`, building it first unless it is there.

  Args:
    parent: the cache directory; made if missing.
    name: the directory's name, which must change whenever its content would.
    build: writes the content into the empty directory it is given and returns the manifest, which
      is written last. The directory then takes its name by a rename, so a killed build leaves
      nothing behind that would pass for a whole one.

  Returns:
    The directory, which holds `manifest.json`.

  Raises:
    InputError: if the cache directory cannot be written or the disk is full.
  """
  final, partial = parent / name, parent / f".partial-{name}"
  if (final / MANIFEST).exists():
    return final
  try:
    parent.mkdir(parents=True, exist_ok=True)
    # The lock lets a second process wait and then find the work done. It dies with its process.
    with filelock.FileLock(os.fspath(parent / f".{name}.lock")):
      if not (final / MANIFEST).exists():
        for stale in (final, partial):
          if stale.exists():
            stale.rmtree()
        partial.mkdir()
        manifest = build(partial)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        partial.rename(final)
  except (OSError, RuntimeError) as error:
    reason = _unwritable(error)
    if reason is None:
      raise
    raise InputError(
      f"cannot prepare data in {parent}: {reason} (while making {name}). Free space, or give a "
      "data cache directory that can be written."
    ) from error
  return final


def _unwritable(error: Exception) -> str | None:
  """Why the cache directory cannot be written, or None if that is not what the error says."""
  if isinstance(error, OSError):
    return error.strerror if error.errno in _UNWRITABLE else None
  # ArrayRecord's writer has no error of its own for a full disk, only the system's words.
  full = os.strerror(errno.ENOSPC)
  return full if full in str(error) else None


def read_manifest(directory: epath.Path) -> dict[str, Any]:
  """Reads the manifest of a published directory.

  Raises:
    InputError: if it is missing or broken.
  """
  path = directory / MANIFEST
  try:
    return json.loads(read_regular(path))
  except ValueError as error:  # An InputError is one.
    raise damaged(path, f"cannot be read ({error})") from error


def damaged(path: epath.Path, problem: str) -> InputError:
  """The error for prepared data that is no longer what was written."""
  whole = next((parent for parent in path.parents if (parent / MANIFEST).exists()), path.parent)
  return InputError(
    f"prepared data: {path} {problem}. Delete the directory {whole} and run again: it is "
    "made anew from the source."
  )
