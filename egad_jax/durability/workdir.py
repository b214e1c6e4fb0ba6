"""The directory of a run: locked by one run at a time, with files that are replaced whole."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Self

import filelock
from etils import epath

from egad_jax.durability import ledger
from egad_jax.durability.restoring import steps_of
from egad_jax.errors import InputError
from egad_jax.files import owned, paths, replacing
from egad_jax.files.storage import is_link, is_local, read_json, write_json, write_text

_LOG = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
SUMMARY = "summary.json"
SAMPLES = "samples.json"
PASSAGE = "passage.json"
HELD_OUT_ROWS = "held_out_rows.json"
GOODPUT = "goodput.json"
IDENTITY = "identity.json"
PROFILE = "profile"
CHECKPOINTS = "checkpoints"
EXPORT = "export"
REPORT = "report.html"
TENSORBOARD = "tensorboard"
TRACKERS = "trackers.json"
DATA = "data"

# Names that a run writes; in a directory that no run has marked they are somebody else's.
_FILES = (CONFIG, IDENTITY, METRICS, EVALUATIONS, TRACKERS, SUMMARY, SAMPLES, PASSAGE, GOODPUT)
_FILES += (REPORT, HELD_OUT_ROWS)
_DIRECTORIES = (CHECKPOINTS, EXPORT, PROFILE, TENSORBOARD, DATA)
# Files without a digest in the mark: recognized by their content, or written too often.
_WITHOUT_DIGEST = (CONFIG, IDENTITY, METRICS, EVALUATIONS, GOODPUT)
_LOCK, _PROBE = ".lock", f"{owned.PREFIX}probe"

# A run may resume with new values of these keys: they do not change what is trained, or (mesh and
# teacher.placement) change its rounding only.
HARMLESS_KEYS = frozenset(
  {
    "log_every",
    "compilation_cache",
    "checkpoint.every_steps",
    "checkpoint.every_seconds",
    "checkpoint.keep",
    "checkpoint.keep_best",
    "eval.prompts",
    "export.dtype",
    "eval.sample_tokens",
    "eval.every_steps",
    "trackers",
    "guard.max_skipped",
    "mesh.replica",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "teacher.placement",
    *(f"teacher.mesh.{axis}" for axis in ("devices", "data", "fsdp", "tensor")),
    "watchdog.step_seconds",
    "watchdog.other_seconds",
    "profile.start_step",
    "profile.steps",
  }
)


def _holds_records(path: epath.Path) -> bool:
  """Whether a .jsonl file is absent or holds records of steps; its last line may be cut off."""
  try:
    lines = path.read_text().splitlines() if path.exists() and path.is_file() else []
  except ValueError:
    return False
  for line in lines[:-1]:
    try:
      record = json.loads(line)
    except (ValueError, RecursionError):
      return False
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
      return False
  return True


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens nested mappings to dotted keys, {"a": {"b": 1}} to {"a.b": 1}; tuples become lists."""
  entries: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      entries |= flat(value, f"{prefix}{key}.")
    else:
      entries[prefix + key] = list(value) if isinstance(value, tuple) else value
  return entries


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """The dotted keys in which two configs differ, sorted."""
  before, after = flat(old), flat(new)
  missing = object()
  return sorted(
    key for key in before | after if before.get(key, missing) != after.get(key, missing)
  )


def read_config(path: epath.Path) -> dict[str, Any] | None:
  """The config that a run stored, as plain values; None if there is no such file.

  Raises:
    InputError: the file is not a JSON object.
  """
  try:
    stored = read_json(path)
    if stored is None or isinstance(stored, dict):
      # A value that nests too deeply to be flattened is no config: this raises RecursionError.
      flat(stored or {})
      return stored
    problem = f"it holds a {type(stored).__name__}"
  except (OSError, ValueError, RecursionError) as error:
    problem = str(error)
  raise InputError(
    f"{path} must be the config of a run, a JSON object; {problem}. Restore the file, or choose "
    "another workdir."
  )


class Workdir:
  """An open workdir, locked until it is closed or the process ends in any way.

  Object stores have no locks: there, whoever starts runs must give each a workdir of its own.

  Attributes:
    path: absolute path of the directory, or its address in an object store.
    writes: whether this process writes the files that only one process of a run writes.
  """

  # What such a directory is marked as, and the names that belong to whoever opens it.
  _kind, _called = owned.WORKDIR, "workdir of egad_jax"
  _files: tuple[str, ...] = _FILES
  _directories: tuple[str, ...] = _DIRECTORIES

  def __init__(self, path: str, *, writes: bool = True):
    """Creates the directory if needed and takes its lock.

    Args:
      path: the directory, on a disk or in an object store.
      writes: whether this process writes; otherwise it only checks that the directory exists.

    Raises:
      InputError: the directory cannot be created or written, holds somebody else's files, or is in
        use by another run.
    """
    self.path = paths.parse(path, "--workdir")
    self.writes = writes
    if writes:
      self._open()
    elif not self.path.exists():
      raise InputError(
        f"--workdir {self.path} is not there for every process: it must be on a file system that "
        "they share, or in an object store."
      )

  def _open(self) -> None:
    try:
      self._require_free_or_ours()
      self.path.mkdir(parents=True, exist_ok=True)
      if is_local(self.path):
        self._lock = filelock.FileLock(os.fspath(self.path / _LOCK))
        self._lock.acquire(timeout=0)
        self._require_free_or_ours()
      # A full disk still takes an empty file, so the probe has content.
      write_text(self.path / _PROBE, "x" * 4096)
      (self.path / _PROBE).unlink()
      if owned.read_mark(self.path) is None:
        closed = [name for name in self._directories if name != EXPORT]  # It has a mark of its own.
        owned.write_mark(self.path, self._kind, {}, closed=closed)
      self._sweep()
    except filelock.Timeout:
      raise InputError(
        f"--workdir {self.path} is in use by another run; wait for it to end or choose another."
      ) from None
    except OSError as error:
      self.close()
      raise InputError(
        f"--workdir {self.path} cannot be written: {error.strerror or error}. "
        "Free space there, mend its permissions, or choose another directory."
      ) from None
    except InputError:
      self.close()
      raise

  def _require_free_or_ours(self) -> None:
    """Checks that a run has marked the directory, or that it holds no name that a run writes.

    Raises:
      InputError: it holds somebody else's files; nothing has been touched.
    """
    if is_link(self.path) and not self.path.exists():
      raise InputError(
        f"--workdir {self.path} is a link to {os.readlink(self.path)}, which does not exist. Make "
        "that directory, or choose another."
      )
    if is_local(self.path):
      owned.require_outside(self.path, "--workdir")
    if not self.path.is_dir():
      return
    mark = owned.read_mark(self.path)
    if mark is not None and mark["kind"] == self._kind:
      return
    found = [path.name for path in self.path.iterdir() if self._is_in_the_way(path)]
    if found:
      raise InputError(
        f"--workdir {self.path} is no {self._called}, but holds "
        f"{owned.name_some(sorted(found))}, which a run would replace. Nothing was touched: choose "
        "another directory, or the workdir of an earlier run."
      )

  def _is_in_the_way(self, path: epath.Path) -> bool:
    if path.name == _LOCK:
      return not pathlib.Path(path).is_file()
    if path.name == DATA:
      return not path.is_dir()  # Prepared data in it have names and marks of their own.
    if path.name in self._directories:
      return not path.is_dir() or any(path.iterdir())
    return path.name in (*self._files, owned.MARK)

  def _sweep(self) -> None:
    """Removes files and directories that killed processes of earlier runs left unfinished."""
    if not is_local(self.path):
      return
    for path in self.path.iterdir():
      unfinished = path.name.startswith(owned.PREFIX) and path.name.endswith(owned.PARTIAL)
      if (unfinished or path.name == _PROBE) and not path.is_dir():
        path.unlink()
    replacing.sweep(pathlib.Path(self.path))

  def require_ours(self) -> None:
    """Checks that everything that the run would replace or continue is as a run left it.

    Raises:
      InputError: a file is somebody else's, or was changed; nothing has been touched.
    """
    if not self.writes:
      return
    mark = owned.read_mark(self.path)
    changed = owned.changed(self.path, mark) if mark else []
    found = [f"{name} (changed since we wrote it)" for name in changed]
    for name in _FILES:
      path = self.path / name
      if is_link(path) or path.is_dir():
        found.append(f"{name} (no plain file)")
      elif path.exists() and name not in _WITHOUT_DIGEST and mark and name not in mark["files"]:
        found.append(name)
    found += [name for name in (METRICS, EVALUATIONS) if not _holds_records(self.path / name)]
    for name in _DIRECTORIES:
      path = self.path / name
      if (path.exists() or is_link(path)) and not path.is_dir():
        found.append(f"{name} (no directory)")
    if found:
      raise InputError(
        f"--workdir {self.path} holds {owned.name_some(sorted(found))}, which this run did not "
        "leave there so and would replace. Nothing was touched: move that away, or choose another "
        "workdir."
      )
    replacing.require_replaceable(self.path / EXPORT, "--workdir", owned.EXPORT)
    ledger.require_ours(self.path / CHECKPOINTS)

  def free_name(self, name: str) -> str:
    """The name to write a file under: `name`, or a numbered one if that is somebody else's file."""
    mark = owned.read_mark(self.path) or {"files": {}}
    changed = owned.changed(self.path, mark)
    stem, dot, suffix = name.rpartition(".")
    copies, free = 0, name
    while os.path.lexists(self.path / free) and (free not in mark["files"] or free in changed):
      copies += 1
      free = f"{stem}.{copies}{dot}{suffix}"
    return free

  @contextlib.contextmanager
  def writing(self, name: str) -> Iterator[None]:
    """Notes `name` in the mark while the context is open; after a kill the file is still ours."""
    if name in _WITHOUT_DIGEST:
      yield
      return
    local, mark = is_local(self.path), owned.read_mark(self.path)
    # Object stores accept about one version of an object per second, so there the name is noted
    # once, without a digest.
    if local or mark is None or name not in mark["files"]:
      owned.amend_mark(self.path, {name: None})
    yield
    if local:
      owned.amend_mark(self.path, {name: owned.entry(self.path / name)})

  def close(self) -> None:
    """Releases the lock."""
    if hasattr(self, "_lock"):
      self._lock.release()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def __truediv__(self, name: str) -> epath.Path:
    return self.path / name

  def write_json(self, name: str, value: Any) -> None:
    """Writes one of the run's JSON files; does nothing on a process that does not write."""
    if self.writes:
      with self.writing(name):
        write_json(self.path / name, value)

  def read_json(self, name: str) -> Any:
    """The value of one of the run's JSON files; None if there is no such file.

    Raises:
      InputError: it is not a file, or cannot be read.
      ValueError: it is not JSON.
    """
    return read_json(self.path / name)

  def held_bytes(self) -> int:
    """Bytes of the checkpoints and the export that the workdir holds already."""
    if not is_local(self.path):
      return 0
    return sum(
      file.stat().st_size
      for name in (CHECKPOINTS, EXPORT)
      for file in pathlib.Path(self.path / name).rglob("*")
      if file.is_file()
    )

  def require_space(self, num_bytes: int, *, held: int | None = None) -> None:
    """Checks the free disk space before any work is done; object stores are not checked.

    Args:
      num_bytes: bytes of all checkpoints and the export.
      held: bytes of them that are there already, or a resumed run would be refused the space that
        it takes up itself; None for those of this workdir.

    Raises:
      InputError: there is less space.
    """
    if not is_local(self.path):
      return
    held = self.held_bytes() if held is None else held
    free = shutil.disk_usage(self.path).free
    if free + held < num_bytes:
      raise InputError(
        f"--workdir {self.path} has {free / 2**30:.2f} GiB free, but the checkpoints and the "
        f"export of this run still need {(num_bytes - held) / 2**30:.2f} GiB; free space, lower "
        "checkpoint.keep, or choose another directory."
      )

  def check_config(self, config: Mapping[str, Any], *, force: bool = False) -> list[str]:
    """Checks a config against that of the run that the workdir holds, if any.

    Args:
      config: the resolved config as plain values.
      force: whether to accept changes that alter what is trained.

    Returns:
      The changed keys that alter what is trained, dotted and sorted.

    Raises:
      InputError: the stored config is damaged or, without `force`, differs in what is trained;
        there are checkpoints without a config; or the run has made more steps than the config has,
        even with `force`.
    """
    stored = read_config(self.path / CONFIG)
    self._check_steps(stored, config)
    changed = changed_keys(stored, config) if stored is not None else []
    harmful = [key for key in changed if key not in HARMLESS_KEYS]
    old, new = flat(stored or {}), flat(config)
    lines = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in harmful or changed)
    if harmful and not force:
      raise InputError(
        f"--workdir {self.path} holds a run of another config ({lines}). Use another workdir, "
        "give the stored values, or pass --force to go on with the new ones."
      )
    if changed:
      _LOG.warning("the run goes on with a changed config (%s)", lines)
    return harmful

  def _check_steps(self, stored: Mapping[str, Any] | None, config: Mapping[str, Any]) -> None:
    """Refuses checkpoints whose config is unknown, or with more steps than the config has."""
    directory = self.path / CHECKPOINTS
    made = steps_of(directory)
    if stored is None and (made or steps_of(directory / ledger.QUARANTINE)):
      raise InputError(
        f"--workdir {self.path} has checkpoints but no {CONFIG}, so that nobody can say of which "
        "run they are. Restore the file, or choose another workdir."
      )
    if made and config["steps"] < made[0]:
      raise InputError(
        f"config.steps ({config['steps']}) must not be below the {made[0]} steps that the run in "
        f"--workdir {self.path} has made; give at least {made[0]}, or choose another workdir. "
        "--force does not undo steps; launch/export.py exports an earlier checkpoint."
      )

  def store_config(self, config: Mapping[str, Any]) -> None:
    """Writes config.json, the resolved config as plain values."""
    self.write_json(CONFIG, config)
