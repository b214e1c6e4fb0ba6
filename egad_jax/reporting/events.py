"""TensorBoard event files of a run; a full disk delays them, and never the run."""

from __future__ import annotations

import logging
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from egad_jax.durability import workdir as files
from egad_jax.files.storage import is_local
from egad_jax.reporting.trackers import TrackedRun

_LOG = logging.getLogger(__name__)
_FLUSH_SECONDS, _UPLOAD_SECONDS = 10.0, 30.0
# Most bytes that wait for room on the disk; a record of one number has about 60.
_MOST_WAITING = 2**24


class EventFile:
  """One event file, appended to by this process alone.

  tensorboardX's own writer is a thread that ends on a full disk, and the run would wait for it for
  ever.
  """

  def __init__(self, directory: epath.Path, *, purge_step: int) -> None:
    """Begins a file, which is created at the first `sync`.

    Args:
      directory: directory of the run's event files; created at the first `sync`.
      purge_step: first step of this file; TensorBoard hides what earlier files hold of this and
        later steps.
    """
    name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    self._path, self._local = directory / name, is_local(directory)
    self._whole, self._waiting, self._written = b"", b"", 0
    self._tried, self._failing, self._lost = time.monotonic(), False, 0
    self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
    start = SessionLog(status=SessionLog.SessionStatus.Value("START"))
    self._add(Event(wall_time=time.time(), step=purge_step, session_log=start))

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """Adds one number of one step, and writes the waiting records when they are due."""
    self._add(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
    if time.monotonic() - self._tried >= (_FLUSH_SECONDS if self._local else _UPLOAD_SECONDS):
      self.sync()

  def _add(self, event: Event) -> None:
    data = event.SerializeToString()
    header = struct.pack("<Q", len(data))
    crcs = (struct.pack("<I", masked_crc32c(part)) for part in (header, data))
    record = header + next(crcs) + data + next(crcs)
    if len(self._waiting) + len(record) > _MOST_WAITING:
      self._lost += 1
    else:
      self._waiting += record

  def sync(self) -> None:
    """Writes the waiting records; if that fails, logs the error once and keeps them."""
    self._tried = time.monotonic()
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      if self._local:
        self._append()
      else:
        self._path.write_bytes(self._whole + self._waiting)
        self._whole += self._waiting
    except OSError as error:
      if not self._failing:
        _LOG.error("%s cannot be written (%s); it is tried again", self._path, error.strerror)
      self._failing = True
      return
    self._waiting, self._failing = b"", False

  def _append(self) -> None:
    path = pathlib.Path(self._path)
    path.touch()
    with path.open("r+b") as file:
      # A failed attempt may have left part of a record, which is overwritten.
      file.seek(self._written)
      file.truncate()
      file.write(self._waiting)
    self._written += len(self._waiting)

  def close(self) -> None:
    """Writes the waiting records, and logs an error if any are lost."""
    self.sync()
    if self._failing or self._lost:
      _LOG.error("the last events of TensorBoard are lost; metrics.jsonl has their numbers")


class TensorBoard:
  """A `Tracker` that writes the event files in tensorboard/ of the workdir."""

  def start(self, run: TrackedRun) -> None:
    """Begins a file, which hides what an earlier start has logged of the steps to come."""
    directory = epath.Path(run.workdir) / files.TENSORBOARD
    self._file = EventFile(directory, purge_step=run.step + 1)

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of a logged step."""
    for name, value in metrics.items():
      self._file.add_scalar(name, value, step)

  def evaluation(self, step: int, values: Mapping[str, float]) -> None:
    """Adds the held-out metrics after a step."""
    self.log(step, values)

  def finish(self, summary: Mapping[str, Any] | None, report: str | None) -> None:
    """Writes what waits; the event files hold neither summary nor report."""
    del summary, report
    self._file.close()
