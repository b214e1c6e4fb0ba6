"""Profiles a few steps of a run: those of the config, and the next ones on SIGUSR1."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from etils import epath

from egad_jax.files.storage import is_local

_LOG = logging.getLogger(__name__)
_Outputs = TypeVar("_Outputs")
SIGNAL = signal.SIGUSR1


@dataclasses.dataclass(frozen=True)
class Window:
  """Which steps are profiled.

  Attributes:
    start_step: the first, counted from 1 as in the logs; 0: none but on the signal.
    steps: how many, also on the signal.
  """

  start_step: int
  steps: int


class Profiler:
  """Traces steps into `<directory>/<first step>/`, for TensorBoard or XProf.

  The window of the config is traced by process 0 alone: all processes run the same program, and a
  trace of each would be hundreds of the same. The signal traces the process that gets it, because
  one that is slower than the others is what it is there to find.
  """

  def __init__(self, directory: epath.Path, window: Window, *, process: int = 0):
    """Takes the signal, if this is the main thread and nothing outside Python has it.

    Args:
      directory: of traces.
      window: which steps.
      process: number of this one; all but the first add theirs to the names of their traces.
    """
    self._directory, self._process, self._steps = directory, process, window.steps
    self._start = 0 if process else window.start_step
    self._left, self._requested = 0, False
    self._previous: Any = None
    self._takes_signal = (
      threading.current_thread() is threading.main_thread()
      # None: a handler that Python knows nothing of and could not give back.
      and signal.getsignal(SIGNAL) is not None
    )
    if self._takes_signal:
      self._previous = signal.signal(SIGNAL, self._request)

  def _request(self, number: int, frame: Any) -> None:
    self._requested = True
    if callable(self._previous):
      self._previous(number, frame)

  def call(self, step: int, program: Callable[..., _Outputs], *arguments: Any) -> _Outputs:
    """`program(*arguments)`, which is step number `step`, inside a trace if it is due.

    After the last step of a trace it waits for the outputs, or the trace would end without them.
    """
    if not self._left and (self._requested or step == self._start):
      self._begin(step)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      outputs = program(*arguments)
    if self._left:
      self._left -= 1
      if not self._left:
        jax.block_until_ready(outputs)
        self._end()
    return outputs

  def _begin(self, step: int) -> None:
    self._requested = False
    name = f"{step}-process-{self._process}" if self._process else str(step)
    self._traced = self._directory / name
    # The profiler writes to disks alone.
    self._written = os.fspath(self._traced)
    if not is_local(self._traced):
      self._written = tempfile.mkdtemp(prefix="egad_jax_profile_")
    options = jax.profiler.ProfileOptions()
    # Every call of a Python function would slow the steps down and hide the rest.
    options.python_tracer_level = 0
    try:
      jax.profiler.start_trace(self._written, profiler_options=options)
    except (RuntimeError, OSError) as error:  # Somebody else profiles, say.
      _LOG.warning("step %d is not profiled: %s", step, error)
    else:
      self._left = self._steps

  def _end(self) -> None:
    try:
      jax.profiler.stop_trace()
      if not is_local(self._traced):
        self._upload()
    except (RuntimeError, OSError) as error:  # A full disk, say, which a checkpoint may not need.
      _LOG.warning("the profile is lost: %s", error)
    else:
      _LOG.info("profiled %d steps: %s", self._steps - self._left, self._traced)

  def _upload(self) -> None:
    written = pathlib.Path(self._written)
    for file in filter(pathlib.Path.is_file, written.rglob("*")):
      target = self._traced / file.relative_to(written).as_posix()
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(file.read_bytes())
    shutil.rmtree(written)

  def close(self) -> None:
    """Ends a trace that has begun, and gives the signal back."""
    if self._left:
      self._end()
      self._left = 0
    if self._takes_signal:
      signal.signal(SIGNAL, self._previous)

  def __enter__(self) -> Profiler:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()
