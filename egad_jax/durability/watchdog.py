"""Ends a process that hangs and prints the stacks of its threads, so that it can be restarted.

A process that waits for ever in a collective or a file system would block all the others, at full
cost. Two timers watch: a thread, which can say what is overdue, and, a second later, a timer of
`faulthandler` in C, which works even if the stuck code holds the GIL.

Preparing data may take hours: there, a process that uses the CPU does not count as hanging. A
process that waits for another's preparation is not watched, because the other one is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from egad_jax import streams

_T = TypeVar("_T")
_STDERR = 2  # The file descriptor: `sys.stderr` may be replaced, or locked by the stuck thread.
_OF_STEPS = ("data", "step")
_PREPARATION, _WAITING = "preparation", "waiting for the other processes"
# A preparing process that uses a smaller share of one core than this hangs.
_COMPUTES = 0.01
# Least seconds between two restarts of the timer in C, each of which starts a thread.
_SLACK = 0.5
# A thread that wakes up later than planned by more than this, in seconds, was stopped.
_STOPPED = 5.0


@dataclasses.dataclass(frozen=True)
class Limits:
  """Seconds without progress after which a process counts as hanging; 0 means never.

  Attributes:
    step_seconds: limit for a step, or for the wait for its batch.
    other_seconds: limit for anything else: start-up, compilation, an evaluation, a save, the end.
  """

  step_seconds: float
  other_seconds: float

  def of(self, section: str) -> float:
    """The limit in seconds of a section: one of `goodput.SECTIONS`, or one before the loop."""
    if section == _WAITING:
      return 0.0
    return self.step_seconds if section in _OF_STEPS else self.other_seconds


class Watchdog:
  """Ends the process with exit code 1 if a section lasts longer than its limit.

  Stacks go to stderr, which every launcher collects; a workdir in an object store has no file
  descriptor. `faulthandler` has one timer per process, so a process can have one watchdog only.

  Attributes:
    process: index of this process, for the message.
  """

  def __init__(self, limits: Limits, *, process: int = 0):
    """Begins to watch, in the section "init".

    Args:
      limits: seconds without progress that are allowed; if both are 0, nothing is watched.
      process: index of this process, for the message.
    """
    self._limits, self.process = limits, process
    self._timer = threading.Lock()
    self._armed_limit, self._armed_at = 0.0, 0.0
    self._suspended = False
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
    self.enter("init")
    self._enabled = limits.step_seconds > 0 or limits.other_seconds > 0
    if self._enabled:
      self._thread.start()

  def enter(self, section: str) -> None:
    """Reports progress: the last section has ended and `section` begins."""
    limit, now = self._limits.of(section), time.monotonic()
    # One tuple, assigned at once, because the thread may read it at any moment.
    self._present = (section, now, limit, time.process_time())
    if limit != self._armed_limit or now - self._armed_at > _SLACK:
      self._arm(limit)

  def _arm(self, limit: float) -> None:
    with self._timer:
      self._armed_limit, self._armed_at = limit, time.monotonic()
      if limit and not self._suspended:
        faulthandler.dump_traceback_later(limit + 2 * _SLACK, exit=True, file=_STDERR)
      else:
        faulthandler.cancel_dump_traceback_later()

  def prepare(self, work: Callable[[], _T], *, alone: bool) -> Callable[[], _T]:
    """Wraps `work` so that it is watched as a preparation.

    Args:
      work: a preparation that is done once, before the training loop.
      alone: whether this is the only process; otherwise it may wait for others afterwards, and is
        not watched then.
    """

    def watched() -> _T:
      self.enter(_PREPARATION)
      try:
        return work()
      finally:
        self.enter("init" if alone else _WAITING)

    return watched

  @contextlib.contextmanager
  def suspended(self) -> Iterator[None]:
    """While this context is open the process is stopped, and the time does not count.

    Other threads run until the stop reaches them and may enter a section in the meantime.
    """
    self._suspended = True
    self._arm(0.0)
    stopped = time.monotonic()
    try:
      yield
    finally:
      self._excuse(time.monotonic() - stopped)
      self._suspended = False
      self._arm(self._present[2])

  def _excuse(self, seconds: float) -> None:
    section, since, limit, computed = self._present
    # Both threads may notice the same stop, so `since` must not move into the future.
    self._present = (section, min(since + seconds, time.monotonic()), limit, computed)
    self._arm(limit)

  def _watch(self) -> None:
    shortest = min(x for x in (self._limits.step_seconds, self._limits.other_seconds) if x > 0)
    wait, before = 0.0, time.monotonic()
    while not self._closed.wait(wait):
      now = time.monotonic()
      if now - before > wait + _STOPPED:
        # The whole process was stopped in the meantime.
        self._excuse(now - before - wait)
      before = now
      suspended = self._suspended
      section, since, limit, computed = self._present
      left = since + limit - now if limit and not suspended else shortest
      if left <= 0:
        used = time.process_time() - computed
        if section != _PREPARATION or used < _COMPUTES * limit:
          self._end(section, limit)
        self.enter(section)
        left = limit
      # A shorter limit may come into force during the wait; half of the shortest is soon enough.
      wait = min(left, shortest / 2)

  def _end(self, section: str, limit: float) -> None:
    message = (
      f"watchdog: process {self.process} hangs: no progress in section {section!r} for {limit:g} "
      "s, so it ends with exit code 1. Stacks of all its threads:\n"
    )
    streams.write_stderr(message)
    faulthandler.dump_traceback(file=_STDERR, all_threads=True)
    # An orderly exit may hang as well.
    os._exit(1)

  def close(self) -> None:
    """Stops watching."""
    self._closed.set()
    if self._enabled:
      faulthandler.cancel_dump_traceback_later()
      self._thread.join()

  def __enter__(self) -> Watchdog:
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()
