"""Orbax checkpoints of a run, written in the background and verified when they are restored.

Besides the arrays, a checkpoint holds a record: the caller's metadata, and the shape, dtype and
digest of every leaf. A damaged checkpoint is moved to the quarantine and the one before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from egad_jax import processes
from egad_jax.durability import ledger
from egad_jax.durability.ledger import META, QUARANTINE
from egad_jax.durability.restoring import (
  NOT_DAMAGE,
  STATE,
  abstract,
  agreed,
  forward_kl_of,
  make_record,
  one_line,
  quieten,
  require_readable,
  restore_whole,
  steps_of,
)
from egad_jax.errors import InputError
from egad_jax.files import paths
from egad_jax.files.storage import delete, is_link, is_local, move

_LOG = logging.getLogger(__name__)
# Orbax puts this into the name of a directory that it is writing; all its tools skip such names.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Number of times, and seconds between them, that the remains of a failed save are looked for.
_LOOKS, _LOOK_SECONDS = 20, 0.1
# The first checkpoint is read back whole only up to this size: reading takes as much memory.
_READ_BACK_BYTES = 2**30


class CheckpointError(RuntimeError):
  """The last checkpoint of a run could not be written; the message is one line."""


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
    """Opens or creates a directory of checkpoints and deletes the remains of unfinished saves.

    Args:
      directory: the directory of checkpoints, `<workdir>/checkpoints`.
      keep: number of the latest checkpoints that are kept.
      keep_best: whether to keep also the checkpoint with the lowest held-out forward KL.
      retry_seconds: seconds between a failed save and the next attempt.
    """
    self._directory, self._keep, self._keep_best = directory, keep, keep_best
    self._retry_seconds = retry_seconds
    self._writing: tuple[int, str] | None = None
    # Shapes and shardings of the first state that is saved, until it has been read back.
    self._first: Any = None
    self._unproven = True
    self._failure: tuple[int, str] | None = None
    self._retry_at = 0.0
    if jax.process_index() == 0:
      directory.mkdir(parents=True, exist_ok=True)
      self._clean()
    quieten()
    self._writer = _new_writer()

  def latest(self) -> int | None:
    """The latest step on the disk, whole or damaged; None if there is none."""
    return max(steps_of(self._directory), default=None)

  def restore_latest(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the latest whole checkpoint; damaged ones are moved to `quarantine/`.

    Args:
      like: tree of `jax.ShapeDtypeStruct` with the shardings that the arrays shall have.

    Returns:
      Step, state and metadata; None if nothing was ever saved here.

    Raises:
      InputError: the checkpoint does not fit the config, there were checkpoints but none is whole,
        or one was not written by this run.
    """
    processes.on_all_processes(self.require_ours)
    quarantine = self._directory / QUARANTINE
    workdir = f"--workdir {self._directory.parent}"
    found = restore_whole(self._directory, like, argument=workdir, on_damage=self._set_aside)
    if found is None and quarantine.exists() and any(quarantine.iterdir()):
      raise InputError(
        f"{workdir} had checkpoints, but none of them is whole; they are in {quarantine}. Put a "
        f"good copy of one into {self._directory}, choose another workdir, or delete this one to "
        "start again."
      )
    return found

  def require_ours(self) -> None:
    """Checks that this run wrote every checkpoint in the directory.

    Raises:
      InputError: a checkpoint is somebody else's.
    """
    ledger.require_ours(self._directory)

  def save(
    self,
    step: int,
    state: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Copies the state off the devices and writes it in the background.

    A save that fails, now or later, is logged and does not raise: see `check` and `wait`.

    Args:
      step: the state's step; a checkpoint of this step that exists already is left as it is.
      state: tree of arrays on the devices.
      meta: values that JSON can hold; `restore_latest` returns them.
      metrics: held-out metrics of this state, with "forward_kl"; None if it was not evaluated.
    """
    self._settle()
    if step in agreed(steps_of(self._directory)):
      _LOG.info("the checkpoint of step %d is there already", step)
      return
    lack = self._prepare(step, state) if jax.process_index() == 0 else ""
    if processes.any_process(bool(lack)):
      self._fail(step, lack or "process 0 cannot write it", final=False)
      return
    if self._unproven:
      self._first = abstract(state, jax.tree.map(lambda x: x.sharding, state))
    record = make_record(step, state, meta, metrics)
    items = ocp.args.Composite(
      **{STATE: ocp.args.PyTreeSave(state), META: ocp.args.JsonSave(record)}
    )
    reason = ""
    try:
      self._writer.save(paths.speakable(self._directory) / str(step), args=items)
    except NOT_DAMAGE:
      raise
    except Exception as error:
      reason = one_line(error)
    self._writing = step, reason
    if reason and jax.process_count() == 1:
      self._settle()

  def check(self) -> bool:
    """Polls the save in the background; takes microseconds unless one has just ended.

    With several processes, or in an object store, this does nothing: the processes learn how a save
    ended at the next `save` or `wait`, where they agree on it.

    Returns:
      Whether to call `save` now, because the last one failed and `retry_seconds` have passed.
    """
    if processes.is_multiprocess() or not is_local(self._directory):
      return False
    if self._writing is None:
      return self._failure is not None and time.monotonic() >= self._retry_at
    step, _ = self._writing
    try:
      self._writer.check_for_errors()
      ended = os.path.exists(self._directory / str(step))
    except Exception as error:
      self._writing, ended = (step, one_line(error)), True
    if ended:
      self._settle()
    return False

  def wait(self) -> None:
    """Waits until the last save is on the disk.

    Raises:
      CheckpointError: the checkpoint could not be written.
    """
    self._settle(final=True)
    if self._failure is not None:
      message, self._failure = self._failed(), None
      raise CheckpointError(
        f"{message}. Free space or mend {self._directory}, and start the same command again."
      )

  def close(self) -> None:
    """Waits for the save in the background and ends its threads; an error is only logged."""
    self._settle(final=True)
    if self._failure is not None and jax.process_index() == 0:
      _LOG.error("%s", self._failed())
    self._writer.close()
    if jax.process_index() == 0:
      self._clean()

  def _settle(self, *, final: bool = False) -> None:
    """Waits for the save in the background; all processes agree on how it ended."""
    if self._writing is None:
      return
    step, reason = self._writing
    self._writing = None
    try:
      self._writer.wait_until_finished()
    except Exception as error:
      reason = reason or one_line(error)
    if not processes.any_process(bool(reason)):
      reason = self._unreadable(step)
    if not processes.any_process(bool(reason)):
      self._failure = None
      if jax.process_index() == 0:
        self._clean()
        self._delete_old()
      return
    # A writer that has failed would raise its further errors during the next save.
    with contextlib.suppress(Exception):
      self._writer.close()
    self._writer = _new_writer()
    self._fail(step, reason or "another process could not write its part", final=final)

  def _fail(self, step: int, reason: str, *, final: bool) -> None:
    self._failure = step, reason
    self._retry_at = time.monotonic() + self._retry_seconds
    if jax.process_index() == 0:
      self._clean_after_failure()
      if not final:
        _LOG.error("%s; trying again in %g s", self._failed(), self._retry_seconds)

  def _failed(self) -> str:
    assert self._failure is not None
    step, reason = self._failure
    latest = self.latest()
    last = "there is none" if latest is None else f"the last whole one is of step {latest}"
    return f"checkpoint of step {step} could not be written: {reason}; {last}"

  def _unreadable(self, step: int) -> str:
    """Why a checkpoint just written cannot be read, or ""; the first one is read whole."""
    whole = None
    if (
      self._unproven
      and not processes.is_multiprocess()
      and _num_bytes(self._first) <= _READ_BACK_BYTES
    ):
      whole = self._first
    reason = ""
    try:
      require_readable(self._directory, step, whole)
    except NOT_DAMAGE as error:  # Memory may not hold a second copy of the state.
      _LOG.warning("the checkpoint of step %d was not read back: %s", step, one_line(error))
    except Exception as error:
      reason = f"it cannot be read back ({one_line(error)})"
      if jax.process_index() == 0:
        self._remove(step)
    self._unproven, self._first = bool(reason), None
    return reason

  def _prepare(self, step: int, state: Any) -> str:
    """Notes the step as ours; returns why it cannot be written, or ""."""
    if (self._directory / str(step)).exists():
      return f"{self._directory / str(step)} is in the way"
    if lack := self._lack_of_space(state):
      return lack
    try:
      ledger.note_step(self._directory, step)
    except OSError as error:
      return one_line(error)
    return ""

  def _lack_of_space(self, state: Any) -> str:
    """Says how much space lacks, or ""; a writer would find out only by filling the disk."""
    if not is_local(self._directory):
      return ""
    needed = _num_bytes(state)
    free = shutil.disk_usage(self._directory).free
    if free >= needed:
      return ""
    return f"{os.strerror(errno.ENOSPC)} ({free / 2**20:.1f} of {needed / 2**20:.1f} MiB)"

  def _remains(self) -> list[epath.Path]:
    """The directories that unfinished saves and deletions of this run left behind."""
    return [
      path
      for path in self._directory.iterdir()
      if _UNFINISHED in path.name and ledger.is_ours(path) and not is_link(path)
    ]

  def _clean(self) -> None:
    """Deletes the remains, which take up disk space."""
    for path in self._remains():
      delete(path)

  def _clean_after_failure(self) -> None:
    """Deletes the remains of a failed save until its threads make no more files."""
    for _ in range(_LOOKS):
      self._clean()
      time.sleep(_LOOK_SECONDS)
      if not self._remains():
        return

  def _delete_old(self) -> None:
    """Deletes all checkpoints of this run but the latest `keep` and the best."""
    steps = [s for s in steps_of(self._directory) if ledger.is_ours(self._directory / str(s))]
    keep = set(steps[: self._keep])
    if self._keep_best:
      kls = {step: kl for step in steps if (kl := forward_kl_of(self._directory, step)) is not None}
      keep |= {min(kls, key=lambda step: (kls[step], -step))} if kls else set()
    for step in set(steps) - keep:
      # Somebody put the link there, and what it leads to.
      if not is_link(self._directory / str(step)):
        self._remove(step)

  def _remove(self, step: int) -> None:
    doomed = self._directory / f"{step}-deleted{_UNFINISHED}"
    try:
      # A deletion that is killed half-way must not leave the name of a step.
      move(self._directory / str(step), doomed)
      delete(doomed)
    except OSError as error:
      _LOG.warning("the old checkpoint of step %d stays: %s", step, one_line(error))

  def _set_aside(self, step: int) -> str:
    """Moves a damaged step to the quarantine; returns a phrase for the log that says where."""
    target = self._directory / QUARANTINE / str(step)
    reason = ""
    if jax.process_index() == 0:
      try:
        target.parent.mkdir(exist_ok=True)
        copies = 1
        while target.exists():
          target = target.with_name(f"{step}.{copies}")
          copies += 1
        move(self._directory / str(step), target)
      except OSError as error:
        reason = one_line(error)
    if processes.any_process(bool(reason)):
      raise InputError(
        f"--workdir {self._directory.parent}: the damaged checkpoint of step {step} cannot be "
        f"moved to {target}: {reason or 'see process 0'}; mend the permissions there."
      )
    return f", moved to {target.parent}"


def _num_bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _new_writer() -> ocp.AsyncCheckpointer:
  # Compression saves 8 % of the bytes, and writing takes several times as long on the host's cores.
  arrays = ocp.PyTreeCheckpointHandler(use_compression=False)
  handlers = {STATE: arrays, META: ocp.JsonCheckpointHandler()}
  return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))
