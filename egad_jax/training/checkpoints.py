"""Checkpoints of a run by Orbax: written beside the training, and believed only when verified.

Beside the arrays a checkpoint holds its record: the caller's metadata, and the shape, dtype and
digest of every leaf. A step is moved aside, and the one before it used, if any of it is damaged.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from egad_jax.errors import InputError
from egad_jax.training.digest import digests, leaves_by_path

_LOG = logging.getLogger(__name__)
_STATE, _META = "state", "meta"
_FORMAT = 1
_QUARANTINE = "quarantine"
# What Orbax names a directory that is being written; all its tools pass over it.
_UNFINISHED = ".orbax-checkpoint-tmp"
# These say something of the devices and nothing of the files.
_NOT_DAMAGE = (MemoryError, jax.errors.JaxRuntimeError)

_Value = TypeVar("_Value")


class CheckpointError(RuntimeError):
  """The last checkpoint of a run could not be written; the message is one line."""


class _DamageError(Exception):
  """A checkpoint is not what was saved; the message is a short reason."""


class Checkpoints:
  """The checkpoints of one directory, `<directory>/<step>/`.

  All processes call every method, at the same step.
  """

  def __init__(
    self,
    directory: epath.Path,
    *,
    keep: int = 1,
    keep_best: bool = False,
    retry_seconds: float = 30.0,
  ):
    """Opens or creates a directory of checkpoints; the remains of unfinished saves go.

    Args:
      directory: where they are, `<workdir>/checkpoints`.
      keep: how many of the latest stay.
      keep_best: whether the one with the lowest held-out forward KL stays besides them.
      retry_seconds: how long after a failed save another is due.
    """
    self._directory, self._keep, self._keep_best = directory, keep, keep_best
    self._retry_seconds = retry_seconds
    self._writing: tuple[int, str] | None = None
    self._failure: tuple[int, str] | None = None
    self._retry_at = 0.0
    if jax.process_index() == 0:
      directory.mkdir(parents=True, exist_ok=True)
      self._clean()
    _quieten()
    self._writer = _new_writer()

  def latest(self) -> int | None:
    """The latest step that is written, whole or damaged; None without one."""
    return max(_steps(self._directory), default=None)

  def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """The latest checkpoint that is whole; damaged ones are moved to `quarantine/`.

    Args:
      like: tree of `jax.ShapeDtypeStruct` with the shardings that the arrays shall have.

    Returns:
      Its step, state and metadata; None if nothing was ever saved here.

    Raises:
      InputError: it does not fit the config, or there were checkpoints and none is whole.
    """
    quarantine = self._directory / _QUARANTINE
    workdir = f"--workdir {self._directory.parent}"
    found = _restore_whole(self._directory, like, argument=workdir, on_damage=self._set_aside)
    if found is None and quarantine.exists() and any(quarantine.iterdir()):
      raise InputError(
        f"{workdir} had checkpoints, but none of them is whole; they are in {quarantine}. Put a "
        f"good copy of one into {self._directory}, choose another workdir, or delete this one to "
        "start again."
      )
    return found

  def save(
    self,
    step: int,
    state: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Copies the state off the devices and writes it in the background.

    A save that fails, now or later, is logged and never raised: see `check` and `wait`.

    Args:
      step: which; one that is written already stays as it is.
      state: tree of arrays on the devices.
      meta: plain values, given back by `restore_latest`.
      metrics: held-out metrics of this very state with "forward_kl", if it was evaluated.
    """
    self._settle()
    if step in _agreed(_steps(self._directory)):
      _LOG.info("the checkpoint of step %d is there already", step)
      return
    lack = self._lack_of_space(state) if jax.process_index() == 0 else ""
    if not _all(not lack):
      self._fail(step, lack or "process 0 has no space left", final=False)
      return
    record = _make_record(step, state, meta, metrics)
    items = ocp.args.Composite(
      **{_STATE: ocp.args.StandardSave(state), _META: ocp.args.JsonSave(record)}
    )
    reason = ""
    try:
      self._writer.save(self._directory / str(step), args=items)
    except _NOT_DAMAGE:
      raise
    except Exception as error:
      reason = _one_line(error)
    self._writing = step, reason
    if reason and jax.process_count() == 1:
      self._settle()

  def check(self) -> bool:
    """Looks after the save in the background; takes microseconds unless one has just ended.

    With several processes nothing is known before the next `save` or `wait`, at which they agree.

    Returns:
      Whether to call `save` now, because the last one failed and `retry_seconds` have passed.
    """
    if jax.process_count() > 1:
      return False
    if self._writing is None:
      return self._failure is not None and time.monotonic() >= self._retry_at
    step, _ = self._writing
    try:
      self._writer.check_for_errors()
      ended = os.path.exists(self._directory / str(step))
    except Exception as error:
      self._writing, ended = (step, _one_line(error)), True
    if ended:
      self._settle()
    return False

  def wait(self) -> None:
    """Waits until the last save is on the disk.

    Raises:
      CheckpointError: it could not be written.
    """
    self._settle(final=True)
    if self._failure is not None:
      message, self._failure = self._failed(), None
      raise CheckpointError(
        f"{message}. Free space or mend {self._directory}, and start the same command again."
      )

  def close(self) -> None:
    """Waits for what is being written and ends the background threads; raises nothing."""
    self._settle(final=True)
    if self._failure is not None and jax.process_index() == 0:
      _LOG.error("%s", self._failed())
    self._writer.close()

  def _settle(self, *, final: bool = False) -> None:
    """Waits for the save in the background; all processes agree on how it ended."""
    if self._writing is None:
      return
    step, reason = self._writing
    self._writing = None
    try:
      self._writer.wait_until_finished()
    except Exception as error:
      reason = reason or _one_line(error)
    if _all(not reason):
      self._failure = None
      if jax.process_index() == 0:
        self._clean()
        self._delete_old()
      return
    # A writer that has failed raises what else went wrong then during its next save.
    with contextlib.suppress(Exception):
      self._writer.close()
    self._writer = _new_writer()
    self._fail(step, reason or "another process could not write its part", final=final)

  def _fail(self, step: int, reason: str, *, final: bool) -> None:
    self._failure = step, reason
    self._retry_at = time.monotonic() + self._retry_seconds
    if jax.process_index() == 0:
      self._clean()
      if not final:
        _LOG.error("%s; trying again in %g s", self._failed(), self._retry_seconds)

  def _failed(self) -> str:
    assert self._failure is not None
    step, reason = self._failure
    latest = self.latest()
    last = "there is none" if latest is None else f"the last whole one is of step {latest}"
    return f"checkpoint of step {step} could not be written: {reason}; {last}"

  def _lack_of_space(self, state: Any) -> str:
    """What is wrong if the state does not fit the disk; a writer that finds out fills it first."""
    needed = sum(x.nbytes for x in jax.tree.leaves(state))
    free = shutil.disk_usage(self._directory).free
    if free >= needed:
      return ""
    return f"{os.strerror(errno.ENOSPC)} ({free / 2**20:.1f} of {needed / 2**20:.1f} MiB)"

  def _clean(self) -> None:
    """Deletes what unfinished saves and deletions left; it takes up the disk."""
    for path in self._directory.iterdir():
      # Threads of a save that failed may still make files while these are deleted.
      for _ in range(3 if _UNFINISHED in path.name else 0):
        shutil.rmtree(path, ignore_errors=True)

  def _delete_old(self) -> None:
    """Deletes all but the latest and the best."""
    steps = _steps(self._directory)
    keep = set(steps[: self._keep])
    if self._keep_best:
      kls = {step: kl for step in steps if (kl := _forward_kl(self._directory, step)) is not None}
      keep |= {min(kls, key=lambda step: (kls[step], -step))} if kls else set()
    for step in set(steps) - keep:
      doomed = self._directory / f"{step}-deleted{_UNFINISHED}"
      try:
        # A deletion that is killed half-way must not leave a step.
        (self._directory / str(step)).rename(doomed)
        shutil.rmtree(doomed)
      except OSError as error:
        _LOG.warning("the old checkpoint of step %d stays: %s", step, _one_line(error))

  def _set_aside(self, step: int) -> str:
    """Moves a damaged step to the quarantine; returns what was done."""
    target = self._directory / _QUARANTINE / str(step)
    reason = ""
    if jax.process_index() == 0:
      try:
        target.parent.mkdir(exist_ok=True)
        copies = 1
        while target.exists():
          target = target.with_name(f"{step}.{copies}")
          copies += 1
        (self._directory / str(step)).rename(target)
      except OSError as error:
        reason = _one_line(error)
    if not _all(not reason):
      raise InputError(
        f"--workdir {self._directory.parent}: the damaged checkpoint of step {step} cannot be "
        f"moved to {target}: {reason or 'see process 0'}; mend the permissions there."
      )
    return f", moved to {target.parent}"


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes, dtypes and shardings of a tree, for `Checkpoints.restore_latest`."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )


def locate(checkpoint: str) -> tuple[epath.Path, int | None]:
  """Splits a `--checkpoint` flag into the workdir and the step.

  Args:
    checkpoint: a workdir, meaning its latest whole checkpoint (None), or its `checkpoints/<step>`.

  Raises:
    InputError: neither is there.
  """
  path = epath.Path(checkpoint).absolute()
  workdir, step = path, None
  if path.name.isdigit() and path.parent.name == "checkpoints":
    workdir, step = path.parent.parent, int(path.name)
  if not (workdir / "config.json").exists() or not (workdir / "checkpoints").exists():
    raise InputError(
      f"--checkpoint {checkpoint} must be a workdir with config.json and checkpoints/, or its "
      "checkpoints/<step>; there is none."
    )
  if step is not None and not path.exists():
    saved = sorted(_steps(path.parent))
    raise InputError(f"--checkpoint {checkpoint} does not exist; saved steps are {saved}.")
  return workdir, step


def restore_state(workdir: epath.Path, step: int | None, like: Any) -> tuple[int, Any]:
  """The step and state of a checkpoint found by `locate`; touches nothing there.

  Raises:
    InputError: there is no whole checkpoint, the one asked for is damaged, or it does not fit the
      config.
  """
  directory, argument = workdir / "checkpoints", f"--checkpoint {workdir}"
  if step is None:
    found = _restore_whole(directory, like, argument=argument, on_damage=lambda step: "")
    if found is None:
      raise InputError(f"{argument} has no whole checkpoint.")
    return found[:2]
  try:
    return step, _read(directory, step, like, argument)[0]
  except _DamageError as damage:
    raise InputError(
      f"{argument}: step {step} is damaged ({damage}); choose another of "
      f"{sorted(_steps(directory))}."
    ) from None


def _restore_whole(
  directory: epath.Path, like: Any, *, argument: str, on_damage: Callable[[int], str]
) -> tuple[int, Any, dict[str, Any]] | None:
  """Step, state and metadata of the latest whole checkpoint, with a warning for each damaged."""
  _quieten()
  steps = _agreed(_steps(directory))
  for i, step in enumerate(steps):
    try:
      return step, *_read(directory, step, like, argument)
    except _DamageError as damage:
      reason = str(damage)
    # Neither its traceback nor Orbax's abandoned readers may hold arrays during the next attempt.
    gc.collect()
    done = on_damage(step)
    if jax.process_index() == 0:
      last = f"falling back to step {steps[i + 1]}" if steps[i + 1 :] else "there is none before it"
      _LOG.warning("the checkpoint of step %d is damaged (%s)%s; %s", step, reason, done, last)
  return None


def _read(directory: epath.Path, step: int, like: Any, argument: str) -> tuple[Any, dict[str, Any]]:
  """State and metadata of one step, verified.

  Raises:
    InputError: it does not fit the config.
    _DamageError: it is damaged; raised by all processes if any of them finds it so.
  """
  record = _attempt(lambda: _read_record(directory, step))
  _require_fit(record, like, f"{argument}: the checkpoint of step {step}")
  # Not through a checkpointer: its barrier after the reading would wait for ever for a process
  # whose reading failed.
  handler = ocp.StandardCheckpointHandler()
  state = _attempt(
    lambda: handler.restore(directory / str(step) / _STATE, args=ocp.args.StandardRestore(like))
  )
  for path, digest in digests(state).items():
    if digest != record["leaves"][path]["digest"]:
      raise _DamageError(f"{path} has changed since it was saved")
  return state, record["meta"]


def _attempt(action: Callable[[], _Value]) -> _Value:
  """The value of an action that reads files; all processes agree on whether it could be done."""
  try:
    value, reason = action(), ""
  except _NOT_DAMAGE:
    raise
  except Exception as error:
    reason = _one_line(error)
  if not _all(not reason):
    raise _DamageError(reason or "another process could not read it")
  return value


def _make_record(
  step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float] | None
) -> dict[str, str]:
  """The record of a checkpoint as text, and the text's checksum."""
  digest_of = digests(state)
  leaves = {
    path: {"shape": list(x.shape), "dtype": str(x.dtype), "digest": digest_of[path]}
    for path, x in leaves_by_path(state).items()
  }
  record = {
    "format": _FORMAT,
    "step": step,
    "meta": dict(meta),
    "metrics": dict(metrics or {}),
    "leaves": leaves,
  }
  text = json.dumps(record)
  return {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _read_record(directory: epath.Path, step: int) -> dict[str, Any]:
  """The record of a step.

  Raises:
    OSError: it cannot be read.
    ValueError: it is damaged.
  """
  try:
    stored = ocp.JsonCheckpointHandler().restore(directory / str(step) / _META)
    text, checksum = stored["record"], stored["sha256"]
    whole = hashlib.sha256(text.encode()).hexdigest() == checksum
  except (ValueError, TypeError, KeyError, AttributeError):
    whole = False
  if not whole:
    raise ValueError("its record has changed since it was saved")
  record = json.loads(text)
  if record["step"] != step:
    raise ValueError(f"it is of step {record['step']}")
  return record


def _forward_kl(directory: epath.Path, step: int) -> float | None:
  """The held-out forward KL of a step, if it was evaluated and can be read."""
  try:
    value = float(_read_record(directory, step)["metrics"]["forward_kl"])
  except (OSError, ValueError, KeyError):
    return None
  return value if math.isfinite(value) else None


def _require_fit(record: Mapping[str, Any], like: Any, what: str) -> None:
  """Compares the record with the state of the config.

  Raises:
    InputError: they differ.
  """
  if record["format"] != _FORMAT:
    raise InputError(
      f"{what} has format {record['format']}, this version reads {_FORMAT}; use the version that "
      "wrote it."
    )
  describe = lambda shape, dtype: f"{dtype}[{','.join(map(str, shape))}]"
  saved = {path: describe(x["shape"], x["dtype"]) for path, x in record["leaves"].items()}
  expected = {path: describe(x.shape, x.dtype) for path, x in leaves_by_path(like).items()}
  for path in sorted(saved | expected):
    there, here = saved.get(path, "absent"), expected.get(path, "absent")
    if there != here:
      raise InputError(
        f"{what} does not fit the config: {path} must be {here} and is {there} in it; use the "
        "config that it was made with, or another directory."
      )


def _steps(directory: epath.Path) -> list[int]:
  """The steps of a directory, the latest first; unfinished saves have other names."""
  names = [path.name for path in directory.iterdir()] if directory.exists() else []
  return sorted((int(n) for n in names if re.fullmatch(r"0|[1-9][0-9]*", n)), reverse=True)


def _agreed(steps: list[int]) -> list[int]:
  """The steps that process 0 sees."""
  if jax.process_count() == 1:
    return steps
  count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
  padded = np.resize(np.asarray([*steps, 0], np.int32), count)
  return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tolist()


def _all(ok: bool) -> bool:
  """Whether it is so in all processes; a barrier."""
  if jax.process_count() == 1:
    return ok
  return bool(np.all(multihost_utils.process_allgather(np.int32(ok))))


def _one_line(error: BaseException) -> str:
  """The cause of an error in a few words; TensorStore's own text fills a page."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = " ".join(str(error).split())
  system = re.search(r"os_error_code='(\d+)'", text)
  if system:
    return os.strerror(int(system.group(1)))
  return (text[:157] + "..." if len(text) > 160 else text) or type(error).__name__


def _new_writer() -> ocp.AsyncCheckpointer:
  return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())


@functools.cache
def _quieten() -> None:
  """Drops what the libraries print of an error, pages of text; one line of it is logged here."""
  logging.getLogger("absl").addFilter(lambda entry: "orbax" not in entry.pathname)
  # After the first error Orbax abandons its other readers and writers, and closes their loop.
  logging.getLogger("asyncio").addFilter(lambda entry: "never retrieved" not in entry.getMessage())
  report = sys.unraisablehook

  def report_others(event: Any) -> None:
    late = str(event.exc_value) == "Event loop is closed"
    if not late and not isinstance(getattr(event.exc_value, "__cause__", None), GeneratorExit):
      report(event)

  sys.unraisablehook = report_others
