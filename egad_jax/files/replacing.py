"""Replaces directories of ours whole or not at all, even if the process is killed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import filelock
from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import owned, paths


def require_replaceable(target: epath.Path, what: str, kind: str) -> None:
  """Checks that a directory can be created, or be replaced because it is an earlier one of ours.

  Args:
    target: the directory, as `paths.parse` returns it.
    what: the flag that names it, for the message.
    kind: kind of directory that its mark must state, such as `owned.EXPORT`.

  Raises:
    InputError: it holds somebody else's files, or cannot be written; nothing has been touched.
  """
  if paths.is_local(target):
    _require_place(target, what)
  if not target.exists():
    return
  mark = owned.read_mark(target)
  if mark is not None and mark["kind"] == kind:
    edited = [f"{name} (changed since we wrote it)" for name in owned.changed(target, mark)]
    found = owned.strangers(target, mark) + edited
  else:
    found = sorted(path.name for path in target.iterdir())
  if found:
    raise InputError(
      f"{what} {target} is replaced only if it is an earlier {kind} of egad_jax or empty, but it "
      f"holds {owned.name_some(found)}. Nothing was touched: give another directory, or move "
      "that away."
    )


def _require_place(target: epath.Path, what: str) -> None:
  """Checks the location of a directory on a disk: its links, its parents and their permissions."""
  real, remedy = paths.real(target), "Give another directory."
  if os.path.islink(target) and not real.exists():
    raise InputError(f"{what} {target} is a link to {real}, which does not exist. {remedy}")
  if real.exists() and not real.is_dir():
    raise InputError(f"{what} {target} is a file, not a directory. {remedy}")
  here = pathlib.Path.cwd()
  if real.exists() and any(os.path.samefile(real, path) for path in (here, *here.parents)):
    raise InputError(
      f"{what} {target} is, or holds, the current directory, which cannot be replaced. {remedy}"
    )
  if os.path.ismount(real):
    raise InputError(
      f"{what} {target} is a mount point, which cannot be replaced. Give a directory in it, like "
      f"{target}/model."
    )
  owned.require_outside(target, what)
  above = next(path for path in real.parents if path.exists())
  if not above.is_dir():
    raise InputError(f"{what} {target} lies below {above}, which is a file. {remedy}")
  if not _may_write(above):
    raise InputError(f"{what} {target} cannot be made: {above} cannot be written. {remedy}")


def _may_write(directory: pathlib.Path) -> bool:
  effective = os.access in os.supports_effective_ids
  return os.access(directory, os.W_OK | os.X_OK, effective_ids=effective)


@contextlib.contextmanager
def replacing(target: epath.Path, what: str, kind: str) -> Iterator[pathlib.Path]:
  """Yields a new directory on a disk that replaces the target when the block ends without an error.

  On a disk the target is whole or absent at any moment. In an object store the files are copied,
  config.json last.

  Args:
    target: the directory to replace, as `paths.parse` returns it; it need not exist.
    what: the flag that names it, for messages.
    kind: kind of directory, for its mark, such as `owned.EXPORT`.

  Raises:
    InputError: the target is not ours to replace; see `require_replaceable`.
  """
  require_replaceable(target, what, kind)
  if not paths.is_local(target):
    with scratch(pathlib.Path(tempfile.gettempdir())) as work:
      yield work
      _upload(work, target, kind)
    return
  real = paths.real(target)
  real.parent.mkdir(parents=True, exist_ok=True)
  with scratch(real.parent, replaces=real.name) as work:
    yield work
    owned.write_mark(work, kind, _entries(work))
    require_replaceable(target, what, kind)
    if real.exists():
      # Renaming cannot replace a directory that holds files; the old one goes with the scratch.
      real.rename(work.parent / "old")
    try:
      work.rename(real)
    finally:
      _put_back(work.parent / "old", real)


def _entries(directory: pathlib.Path) -> dict[str, Any]:
  return {path.name: owned.entry(path) for path in sorted(directory.iterdir())}


def _upload(work: pathlib.Path, target: epath.Path, kind: str) -> None:
  mark, files = owned.read_mark(target), _entries(work)
  before = mark["files"] if mark else {}
  # A process killed from here on leaves files of either version, so both are marked as ours.
  owned.write_mark(target, kind, dict.fromkeys([*before, *files]))
  for name in sorted(files, key=lambda name: name == "config.json"):
    epath.Path(work / name).copy(target / name, overwrite=True)
  for name in before.keys() - files.keys():
    (target / name).unlink(missing_ok=True)
  owned.write_mark(target, kind, files)


@contextlib.contextmanager
def scratch(parent: pathlib.Path, *, replaces: str = "") -> Iterator[pathlib.Path]:
  """Yields a new scratch directory, removed when the block ends; sweeps `parent` first.

  Args:
    parent: directory for it, on the same disk as the result.
    replaces: name of the directory in `parent` that the caller moves to `old` beside the new one,
      and that `sweep` puts back after a kill; "" if none.
  """
  sweep(parent)
  with tempfile.TemporaryDirectory(
    dir=parent, prefix=owned.PREFIX, ignore_cleanup_errors=True
  ) as name:
    work = pathlib.Path(name)
    with filelock.FileLock(os.fspath(work / ".lock")):
      # Marked only once locked, so that another process's sweep finds it in use.
      owned.write_mark(work, owned.SCRATCH, {}, replaces=replaces)
      (work / "new").mkdir()
      yield work / "new"


def sweep(parent: pathlib.Path) -> None:
  """Removes the scratch directories that killed processes left in a directory."""
  for item in os.scandir(parent) if parent.is_dir() else ():
    if not item.name.startswith(owned.PREFIX) or not item.is_dir(follow_symlinks=False):
      continue
    mark, work = owned.read_mark(item.path), pathlib.Path(item.path)
    if mark is None or mark["kind"] != owned.SCRATCH:
      continue
    # The lock is held as long as its process lives.
    with contextlib.suppress(OSError), filelock.FileLock(os.fspath(work / ".lock"), timeout=0):
      _put_back(work / "old", parent / str(mark.get("replaces") or ""))
      shutil.rmtree(work, ignore_errors=True)


def _put_back(old: pathlib.Path, real: pathlib.Path) -> None:
  """Renames the old directory back if a replacement stopped half-way."""
  if old.exists() and not os.path.lexists(real):
    old.rename(real)
