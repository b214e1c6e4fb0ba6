"""Ends a process that hangs, with the stacks of all its threads, so that it can be started again.

A rank that waits for ever in a collective or a file system would hold all the others and be billed.
Two timers watch: a thread, which can say what is overdue, and one of `faulthandler` in C a second
later, which needs no GIL and so works when the stuck code holds it.

Preparing data may rightly take hours: there, a process that computes does not hang. One that waits
for the others to do so is not watched, because theirs is.
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
_STDERR = 2  # The descriptor itself: `sys.stderr` may be replaced, or locked by the stuck thread.
_OF_STEPS = ("data", "step")
_PREPARATION, _WAITING = "preparation", "waiting for the other processes"
# The least share of its time for which a process computes that does not hang while it prepares.
_COMPUTES = 0.01
# Starting the timer in C starts a thread. It is not moved more often than this, seconds.
_SLACK = 0.5
# A thread that wakes up so much later than it meant to, in seconds, was stopped.
_STOPPED = 5.0


@dataclasses.dataclass(frozen=True)
class Limits:
  """Seconds without progress after which a process is taken to hang; 0: never.

  Attributes:
    step_seconds: of a step or the wait for its batch.
    other_seconds: of anything else: compilation, an evaluation, a save, the beginning, the end.
  """

  step_seconds: float
  other_seconds: float

  def of(self, section: str) -> float:
    """The limit of a section: one of `goodput.SECTIONS`, or one of those before the loop."""
    if section == _WAITING:
      return 0.0
    return self.step_seconds if section in _OF_STEPS else self.other_seconds


class Watchdog:
  """Ends the process with code 1 when the next section is entered later than the limit allows.

  Stacks go to stderr, which every launcher collects; a workdir may be no place for a file
  descriptor. `faulthandler` has one such timer per process, so there may be one watchdog.

  Attributes:
    process: number of this process, for the message.
  """

  def __init__(self, limits: Limits, *, process: int = 0):
    """Begins to watch, in the section "init".

    Args:
      limits: for each section.
      process: number of this one, for the message.
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
    """Says that there is progress, and what comes next."""
    limit, now = self._limits.of(section), time.monotonic()
    # One tuple: the thread reads it at any moment.
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
    """`work`, watched as a preparation.

    Args:
      work: what is done once, before the loop.
      alone: whether there are no other processes, which may take their time before or after it.
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
    """While this is open the process is stopped, which is no lack of progress.

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
    # Both threads may find out about the same stop.
    self._present = (section, min(since + seconds, time.monotonic()), limit, computed)
    self._arm(limit)

  def _watch(self) -> None:
    shortest = min(x for x in (self._limits.step_seconds, self._limits.other_seconds) if x > 0)
    wait, before = 0.0, time.monotonic()
    while not self._closed.wait(wait):
      now = time.monotonic()
      if now - before > wait + _STOPPED:
        # Nothing of this process ran in the meantime.
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
      # A shorter limit may come into force meanwhile, but is not over in half its time.
      wait = min(left, shortest / 2)

  def _end(self, section: str, limit: float) -> None:
    message = (
      f"watchdog: process {self.process} hangs: no progress in section {section!r} for {limit:g} "
      "s, so it ends with exit code 1. Stacks of all its threads:\n"
    )
    streams.write_stderr(message)
    faulthandler.dump_traceback(file=_STDERR, all_threads=True)
    # At once: whatever hangs may hang every orderly way out, too.
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
