"""Directories that are either whole or absent, made once however many processes ask for them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import filelock
from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import owned, paths, replacing
from egad_jax.files.regular_file import read_regular

MANIFEST = "manifest.json"
_UNWRITABLE = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
  errno.EEXIST,
  errno.ENOTDIR,
  errno.EISDIR,
)


def digest(content: Any) -> str:
  """SHA-256 of a JSON-like value, in hexadecimal."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def build_once(
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
    InputError: if the cache directory cannot be written, the disk is full, or somebody else's
      directory has that name.
  """
  final = parent / name
  try:
    if not _is_there(final):
      parent.mkdir(parents=True, exist_ok=True)
      # The lock lets a second process wait and then find the work done. It dies with its process.
      with filelock.FileLock(os.fspath(parent / f".{name}.lock")):
        if not _is_there(final):
          _build(final, build)
  except (OSError, RuntimeError) as error:
    reason = _unwritable(error)
    if reason is None:
      raise
    raise InputError(
      f"cannot prepare data in {parent}: {reason} (while making {name}). Free space, or give a "
      "data cache directory that can be written."
    ) from error
  return final


def _is_there(final: epath.Path) -> bool:
  """Whether a directory was built, and perhaps damaged since.

  Raises:
    InputError: something else has its name.
  """
  if not os.path.lexists(final):
    return False
  mark = owned.read_mark(final)
  if mark is None or mark["kind"] != owned.DATA:
    raise InputError(
      f"{final} is in the way: data is to be prepared under that name, and this was not made by "
      "egad_jax. Nothing was touched: move it away, or give another data cache directory."
    )
  return True


def _build(final: epath.Path, build: Callable[[epath.Path], dict[str, Any]]) -> None:
  with replacing.scratch(pathlib.Path(final.parent)) as partial:
    manifest = build(paths.LocalPath(partial))
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
    owned.write_mark(partial, owned.DATA, {MANIFEST: owned.entry(partial / MANIFEST)})
    partial.rename(final)


def _unwritable(error: Exception) -> str | None:
  """Why the cache directory cannot be written, or None if that is not what the error says."""
  if isinstance(error, OSError):
    return error.strerror if error.errno in _UNWRITABLE else None
  # ArrayRecord's writer has no error of its own for a full disk, only the system's words.
  full = os.strerror(errno.ENOSPC)
  return full if full in str(error) else None


def read_manifest(directory: epath.Path) -> dict[str, Any]:
  """Reads the manifest of a directory that `build_once` made.

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
