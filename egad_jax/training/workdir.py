"""The files of a run: one directory, one running process, whole files only."""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import filelock
from etils import epath

from egad_jax.errors import InputError

_LOG = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
SUMMARY = "summary.json"
SAMPLES = "samples.json"
PASSAGE = "passage.json"
ATTEMPTS = "attempts.json"
CHECKPOINTS = "checkpoints"
EXPORT = "export"

# Changing these does not change what is trained, so a run may go on with new values.
HARMLESS_KEYS = frozenset(
  {
    *("log_every", "compilation_cache", "checkpoint.every_steps", "checkpoint.every_seconds"),
    *("checkpoint.keep", "eval.prompts", "eval.sample_tokens", "eval.every_steps"),
    "tensorboard",
  }
)


def finite_or_none(value: Any) -> Any:
  """JSON has no NaN or infinity: they become null, at any depth."""
  if isinstance(value, Mapping):
    return {k: finite_or_none(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [finite_or_none(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: epath.Path, text: str) -> None:
  """Writes a file by rename: readers see the old one or the whole new one."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text)
  partial.replace(path)


def write_json(path: epath.Path, value: Any) -> None:
  """`write_text` of a JSON value, NaN as null."""
  write_text(path, json.dumps(finite_or_none(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: epath.Path) -> Any:
  """The value of a JSON file, None if there is no such file."""
  return json.loads(path.read_text()) if path.exists() else None


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
  """The records of a .jsonl file; a last line that a killed process left unfinished is dropped."""
  records = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def keep_lines(path: epath.Path, last_step: int) -> None:
  """Cuts a .jsonl file back to the records of steps up to `last_step`."""
  kept = [record for record in read_lines(path) if record["step"] <= last_step]
  write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def append_line(path: epath.Path, record: Mapping[str, Any]) -> None:
  """Appends one record and waits until it is on the disk."""
  with path.open("a") as file:
    file.write(json.dumps(finite_or_none(record)) + "\n")
    file.flush()
    os.fsync(file.fileno())


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"a": {"b": 1}} -> {"a.b": 1}."""
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


class Workdir:
  """An open workdir. Holds a lock that the operating system frees when the process ends, however.

  Attributes:
    path: the directory.
  """

  def __init__(self, path: str):
    """Creates the directory if needed and takes its lock.

    Raises:
      InputError: it cannot be created or written, or another run uses it.
    """
    self.path = epath.Path(path).absolute()
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = filelock.FileLock(os.fspath(self.path / ".lock"))
      self._lock.acquire(timeout=0)
      # An empty file can be created on a full disk; one with a byte in it can not.
      write_text(self.path / ".writable", "x" * 4096)
      (self.path / ".writable").unlink()
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

  def close(self) -> None:
    """Frees the lock."""
    if hasattr(self, "_lock"):
      self._lock.release()

  def __enter__(self) -> Workdir:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def __truediv__(self, name: str) -> epath.Path:
    return self.path / name

  def require_space(self, num_bytes: int) -> None:
    """Checks the disk before any work is spent.

    Args:
      num_bytes: of checkpoints and export in all; what the workdir holds of them counts as free,
        or a resumed run would be refused the space that it takes up itself.

    Raises:
      InputError: there is not that much.
    """
    held = sum(
      file.stat().st_size
      for name in (CHECKPOINTS, EXPORT)
      for file in pathlib.Path(self.path / name).rglob("*")
      if file.is_file()
    )
    free = shutil.disk_usage(self.path).free
    if free + held < num_bytes:
      raise InputError(
        f"--workdir {self.path} has {free / 2**30:.2f} GiB free, but the checkpoints and the "
        f"export of this run still need {(num_bytes - held) / 2**30:.2f} GiB; free space, lower "
        "checkpoint.keep, or choose another directory."
      )

  def check_config(self, config: Mapping[str, Any], *, force: bool = False) -> None:
    """Checks a config against that of the run that the workdir holds, if any.

    Args:
      config: the resolved config as plain values.
      force: accept changes that alter what is trained.

    Raises:
      InputError: the workdir holds a run of another config.
    """
    stored = read_json(self.path / CONFIG)
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

  def store_config(self, config: Mapping[str, Any]) -> None:
    """Writes config.json."""
    write_json(self.path / CONFIG, config)
