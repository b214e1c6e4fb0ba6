"""Profiles a few steps of a run: those that the config names, and the next ones on SIGUSR1."""

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
  """The steps that the config asks to trace.

  Attributes:
    start_step: first step to trace, counted from 1 as in the logs; 0 to trace on the signal only.
    steps: number of steps in a trace, also in one that the signal starts; positive.
  """

  start_step: int
  steps: int


class Profiler:
  """Traces steps into `<directory>/<first step>/`, for TensorBoard or XProf.

  Process 0 alone traces the window of the config: all processes run the same program, so their
  traces would be much the same. The signal traces the process that receives it, to examine one
  that is slower than the others.
  """

  def __init__(self, directory: epath.Path, window: Window, *, process: int = 0):
    """Installs the signal handler, if this is the main thread and no handler outside Python is set.

    Args:
      directory: directory that traces are written into.
      window: the steps to trace.
      process: index of this process, which the names of its traces contain unless it is 0.
    """
    self._directory, self._process, self._steps = directory, process, window.steps
    self._start = 0 if process else window.start_step
    self._left, self._requested = 0, False
    self._previous: Any = None
    self._takes_signal = (
      threading.current_thread() is threading.main_thread()
      # None means a handler that was not installed from Python and could not be restored.
      and signal.getsignal(SIGNAL) is not None
    )
    if self._takes_signal:
      self._previous = signal.signal(SIGNAL, self._request)

  def _request(self, number: int, frame: Any) -> None:
    self._requested = True
    if callable(self._previous):
      self._previous(number, frame)

  def call(self, step: int, program: Callable[..., _Outputs], *arguments: Any) -> _Outputs:
    """Returns `program(*arguments)`, which is step number `step`, inside a trace if one is due.

    After the last step of a trace it waits for the outputs, so that the trace covers their
    computation.
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
    # The profiler writes to local disks only; other traces are uploaded when they end.
    self._written = os.fspath(self._traced)
    if not is_local(self._traced):
      self._written = tempfile.mkdtemp(prefix="egad_jax_profile_")
    options = jax.profiler.ProfileOptions()
    # Tracing every call of a Python function would slow the steps down and clutter the trace.
    options.python_tracer_level = 0
    try:
      jax.profiler.start_trace(self._written, profiler_options=options)
    except (RuntimeError, OSError) as error:  # For example, another profiler is active.
      _LOG.warning("step %d is not profiled: %s", step, error)
    else:
      self._left = self._steps

  def _end(self) -> None:
    try:
      jax.profiler.stop_trace()
      if not is_local(self._traced):
        self._upload()
    except (RuntimeError, OSError) as error:  # For example, a full disk that the run does not need.
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
    """Ends a trace that has begun and restores the previous signal handler."""
    if self._left:
      self._end()
      self._left = 0
    if self._takes_signal:
      signal.signal(SIGNAL, self._previous)

  def __enter__(self) -> Profiler:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()
