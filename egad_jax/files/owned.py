"""Marks directories as ours, so that nothing that others made is ever replaced or removed.

A directory of ours holds a mark, `egad_jax.json`, which says what kind of directory it is and lists
the files in it that we wrote. A file that the mark does not list, or that has changed since, is
somebody else's.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Any

from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import paths

MARK = "egad_jax.json"
EXPORT, WORKDIR, SWEEP, DATA, SCRATCH = "export", "workdir", "sweep", "data", "scratch"
UNFINISHED = "unfinished data"
# Begin and end of the names of unfinished files in directories that hold other files too.
PREFIX, PARTIAL = ".egad_jax-", ".partial"
_SMALL = 2**24  # Bytes; a file up to this size is digested at every check.
_NAMED = 4  # Most files that a message names.


def read_mark(directory: epath.PathLike) -> dict[str, Any] | None:
  """The mark of a directory; None if it has no valid one, which means that it is not ours."""
  path = epath.Path(directory) / MARK
  try:
    mark = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError):
    return None
  if not isinstance(mark, dict) or mark.get("made_by") != "egad_jax":
    return None
  files = mark.get("files")
  if not isinstance(mark.get("kind"), str) or not isinstance(files, dict):
    return None
  return mark if all(isinstance(written, dict | None) for written in files.values()) else None


def write_mark(directory: epath.PathLike, kind: str, files: Mapping[str, Any], **more: Any) -> None:
  """Marks a directory as ours.

  Args:
    directory: an existing directory on a disk, or one in an object store.
    kind: EXPORT, WORKDIR, SWEEP, DATA or SCRATCH.
    files: name -> `entry` of each file in it that is ours; None for one that is being written.
    more: further entries of the mark, which JSON can hold.
  """
  mark = {"made_by": "egad_jax", "kind": kind, **more, "files": dict(files)}
  write_text(epath.Path(directory) / MARK, json.dumps(mark, indent=1, sort_keys=True) + "\n")


def amend_mark(directory: epath.PathLike, files: Mapping[str, Any], **more: Any) -> None:
  """Adds files and further entries to a directory's mark; the arguments are `write_mark`'s."""
  mark = read_mark(directory) or {}
  kind, before = mark.pop("kind", WORKDIR), mark.pop("files", {})
  mark.pop("made_by", None)
  write_mark(directory, kind, {**before, **files}, **(mark | more))


def write_text(path: epath.Path, text: str) -> None:
  """Writes a file atomically: readers see the old one or the whole new one."""
  if not paths.is_local(path):
    path.write_text(text)  # An object appears when all of it is there.
    return
  partial = path.with_name(f"{PREFIX}{path.name}{PARTIAL}")
  partial.unlink(missing_ok=True)  # If it were a link, its target would be overwritten.
  partial.write_text(text)
  partial.replace(path)


def entry(path: epath.PathLike) -> dict[str, Any]:
  """Size in bytes and SHA-256 of a file, for the mark of its directory."""
  with epath.Path(path).open("rb") as file:
    digest, size = hashlib.sha256(), 0
    while block := file.read(2**22):
      digest.update(block)
      size += len(block)
  return {"size": size, "sha256": digest.hexdigest()}


def strangers(directory: epath.Path, mark: Mapping[str, Any]) -> list[str]:
  """Sorted names of files in a directory that its mark does not list."""
  present = sorted(path.name for path in directory.iterdir())
  return [name for name in present if name not in mark["files"] and name != MARK]


def changed(directory: epath.Path, mark: Mapping[str, Any]) -> list[str]:
  """Sorted names of files in a directory that differ from what its mark says of them."""
  return sorted(
    name
    for name, written in mark["files"].items()
    if written is not None and _differs(directory, name, written)
  )


def _differs(directory: epath.Path, name: str, written: Mapping[str, Any]) -> bool:
  path = directory / name
  if not paths.is_local(path):
    # Reading a file from an object store would take as long as writing it again.
    return path.exists() and path.stat().length != written.get("size")
  if not os.path.lexists(path):
    return False
  status = os.lstat(path)
  if not stat.S_ISREG(status.st_mode) or status.st_size != written.get("size"):
    return True
  # Large files are read only if they were touched after the mark was written. Nobody can set ctime
  # back; a copy of a directory has new times and is read.
  later = status.st_ctime_ns > os.stat(directory / MARK).st_ctime_ns
  return (later or status.st_size <= _SMALL) and entry(path) != dict(written)


def require_outside(path: epath.Path, what: str) -> None:
  """Checks that a path on a disk is not inside a directory that egad_jax keeps for itself.

  Args:
    path: a path on a disk, which need not exist.
    what: the flag that names it, for the message.

  Raises:
    InputError: it is inside one.
  """
  real = paths.real(path)
  for above in real.parents:
    mark = read_mark(above)
    if mark is None:
      continue
    child = real.relative_to(above).parts[0]
    if mark["kind"] in (EXPORT, DATA) or child in mark.get("closed", ()):
      inside = above / child if mark["kind"] in (WORKDIR, SWEEP) else above
      raise InputError(
        f"{what} {path} lies inside {inside}, which egad_jax keeps for itself. Give a directory "
        "outside."
      )


def require_apart(target: epath.Path, what: str, inputs: Mapping[str, pathlib.Path]) -> None:
  """Checks that a directory to be written neither is, nor contains, nor lies in an input.

  Args:
    target: the directory, as `paths.parse` returns it; object stores are not checked.
    what: the flag that names it, for the message.
    inputs: flag or config key -> an existing file or directory that is read.

  Raises:
    InputError: they overlap; the message names both.
  """
  if not paths.is_local(target):
    return
  real = paths.real(target)
  for key, path in inputs.items():
    source = paths.real(path)
    if _within(source, real) or _within(real, source):
      raise InputError(
        f"{what} {target} and {key} ({path}) must be apart, or what is read would be replaced. "
        "Give another directory."
      )


def _within(inner: pathlib.Path, outer: pathlib.Path) -> bool:
  if not outer.exists():
    return outer in (inner, *inner.parents)
  return any(path.exists() and path.samefile(outer) for path in (inner, *inner.parents))


def name_some(names: list[str]) -> str:
  """The first `_NAMED` names, and the number of the others."""
  more = len(names) - _NAMED
  return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
