"""Cache directories that are whole or absent, built once even if many processes ask for them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
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
  """SHA-256 of a value that JSON can hold, in 64 hexadecimal digits; key order does not matter."""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def build_once(
  parent: epath.Path, name: str, build: Callable[[epath.Path], dict[str, Any]]
) -> epath.Path:
  """Returns the directory `parent/name`, building it first unless it is there.

  Args:
    parent: the cache directory, on a disk; created if missing.
    name: the directory's name, which must change whenever its content would.
    build: writes the content into the empty directory that it is given, and returns the manifest,
      which is written last. The directory is then renamed, so a killed build leaves nothing that
      could be mistaken for a whole one.

  Returns:
    The directory, which holds `manifest.json`.

  Raises:
    InputError: the cache directory cannot be written, the disk is full, or somebody else's
      directory has that name.
  """
  final = parent / name
  try:
    if not _is_there(final):
      parent.mkdir(parents=True, exist_ok=True)
      # A second process waits here and then finds the work done; the lock dies with its process.
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


@contextlib.contextmanager
def unfinished(parent: epath.Path, name: str) -> Iterator[pathlib.Path]:
  """Yields the directory for the unfinished work on `parent/name`, inside its `build`.

  It is removed when the block ends, also by an InputError. After anything else, such as a kill or a
  full disk, it stays, and the next build finds what was done.

  Raises:
    InputError: somebody else's directory has its name.
  """
  path = pathlib.Path(parent) / f"{owned.PREFIX}{name}{owned.PARTIAL}"
  if os.path.lexists(path):
    mark = owned.read_mark(path)
    if mark is None or mark["kind"] != owned.UNFINISHED:
      raise InputError(f"{path} is in the way and was not made by egad_jax. Move it away.")
  else:
    path.mkdir()
    owned.write_mark(path, owned.UNFINISHED, {})
  try:
    yield path
  except InputError:
    shutil.rmtree(path)
    raise
  shutil.rmtree(path)


def _is_there(final: epath.Path) -> bool:
  """Whether the directory was built; it may have been damaged since.

  Raises:
    InputError: somebody else's file or directory has its name.
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
  # ArrayRecord's writer raises RuntimeError on a full disk, with the system's words.
  full = os.strerror(errno.ENOSPC)
  return full if full in str(error) else None


def read_manifest(directory: epath.Path) -> dict[str, Any]:
  """Reads the manifest of a directory that `build_once` made.

  Raises:
    InputError: the manifest is missing or is not JSON.
  """
  path = directory / MANIFEST
  try:
    return json.loads(read_regular(path))
  except ValueError as error:  # An InputError is one.
    raise damaged(path, f"cannot be read ({error})") from error


def damaged(path: epath.Path, problem: str) -> InputError:
  """The error for prepared data that changed after it was written.

  Args:
    path: the damaged file.
    problem: predicate of the message's first sentence, such as "is missing".
  """
  whole = next((parent for parent in path.parents if (parent / MANIFEST).exists()), path.parent)
  return InputError(
    f"prepared data: {path} {problem}. Delete the directory {whole} and run again: it is "
    "made anew from the source."
  )
