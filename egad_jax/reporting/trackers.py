"""Sends a run's numbers to trackers; one that fails or hangs is dropped, and the run goes on."""

from __future__ import annotations

import dataclasses
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from egad_jax.durability import workdir as files
from egad_jax.durability.workdir import Workdir

_LOG = logging.getLogger(__name__)
# Seconds after which a call in progress counts as hanging. The client of Weights & Biases gives up
# its start after 90 s by itself.
CALL_SECONDS = 120.0
# Seconds that the end of a run waits for all its trackers together.
FINISH_SECONDS = 30.0
# Most records that wait for one tracker; a record has about 30 numbers.
MOST_WAITING = 4096
_MOST_CHARACTERS = 300


@dataclasses.dataclass(frozen=True)
class TrackedRun:
  """A run as a tracker sees it when the run starts or resumes.

  Attributes:
    run_id: identifier of the run, 32 hexadecimal digits; the same at every start of the run.
    step: step from which the run resumes; 0 for a new run. Later steps that an earlier start has
      logged already come again, with the same values up to rounding.
    workdir: the run's directory, or its address in an object store.
    config: the resolved config, dotted key -> plain value.
    facts: what the run found out beside its config, such as the numbers of parameters.
  """

  run_id: str
  step: int
  workdir: str
  config: Mapping[str, Any]
  facts: Mapping[str, Any]


class Tracker(Protocol):
  """Receives the numbers of one start of a run, in one thread of its own and in order of steps.

  Process 0 alone makes one. Any method may raise or be slow: the run does not wait for it before
  its end.
  """

  def start(self, run: TrackedRun) -> None:
    """Begins to track the run, or goes on with what an earlier start of it has tracked."""

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Takes the metrics of a logged step, those of metrics.jsonl that are finite."""

  def evaluation(self, step: int, values: Mapping[str, float]) -> None:
    """Takes the student's held-out metrics after a step, under names with "held_out/"."""

  def finish(self, summary: Mapping[str, Any] | None, report: str | None) -> None:
    """Ends the tracking.

    Args:
      summary: the values of summary.json, with dotted keys; None if the run ends before its last
        step.
      report: path of report.html; None if the run ends before its last step.
    """


def finite(values: Mapping[str, Any]) -> dict[str, float]:
  """The numbers among the values, without NaN, infinity and booleans.

  >>> finite({"a": 1, "b": None, "c": float("nan"), "d": "text", "e": True})
  {'a': 1}
  """
  return {
    key: value
    for key, value in values.items()
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  }


def run_id(workdir: Workdir) -> str:
  """The identifier that trackers know the run by; the first call writes it to trackers.json."""
  stored = workdir.read_json(files.TRACKERS)
  found = stored.get("run_id") if isinstance(stored, dict) else None
  if not isinstance(found, str):
    found = uuid.uuid4().hex
    workdir.write_json(files.TRACKERS, {"run_id": found})
  return found


class _Worker:
  """The thread of one tracker, and the records that wait for it."""

  def __init__(self, name: str, make: Callable[[], Tracker], run: TrackedRun):
    self._name = name
    self._waiting: queue.Queue[tuple[Any, ...]] = queue.Queue(MOST_WAITING)
    self._lock, self._dropped, self._is_behind = threading.Lock(), False, False
    # The call in progress and when it began; both are replaced at once.
    self._call: tuple[str, float | None] = ("start", None)
    # A thread that hangs in a library must not keep the process from ending.
    self._thread = threading.Thread(
      target=self._work, args=(make, run), name=f"tracker {name}", daemon=True
    )
    self._thread.start()

  def _work(self, make: Callable[[], Tracker], run: TrackedRun) -> None:
    try:
      self._call = ("start", time.monotonic())
      tracker = make()
      tracker.start(run)
      self._call = ("start", None)
      while not self._is_dropped():
        call, *arguments = self._waiting.get()
        self._call = (call, time.monotonic())
        getattr(tracker, call)(*arguments)
        self._call = (call, None)
        if call == "finish":
          return
    except BaseException as error:  # A library may call sys.exit.
      self._drop(f"{self._call[0]} raised {type(error).__name__}: {error}")

  def _drop(self, reason: str) -> None:
    line = " ".join(reason.split())
    line = line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} [...]"
    # Whoever finds the tracker dropped can rely on the warning to be out.
    with self._lock:
      if not self._dropped:
        _LOG.warning("tracker %s is dropped and the run goes on: %s", self._name, line)
      self._dropped = True

  def _is_dropped(self) -> bool:
    with self._lock:
      return self._dropped

  def put(self, call: str, *arguments: Any) -> None:
    """Hands over a call without waiting; leaves it out if too many wait."""
    name, since = self._call
    if since is not None and time.monotonic() - since > CALL_SECONDS:
      self._drop(f"{name} has not returned after {CALL_SECONDS:g} s")
    if self._is_dropped():
      return
    try:
      self._waiting.put_nowait((call, *arguments))
    except queue.Full:
      if not self._is_behind:
        _LOG.warning(
          "tracker %s is %d records behind: it will lack some, which metrics.jsonl has",
          self._name,
          MOST_WAITING,
        )
      self._is_behind = True

  def finish(self, deadline: float, *arguments: Any) -> None:
    """Asks the tracker to end when it has taken what waits; `wait` waits for that."""
    if self._is_dropped():
      return
    try:
      self._waiting.put(("finish", *arguments), timeout=max(deadline - time.monotonic(), 0.0))
    except queue.Full:
      self.wait(deadline)

  def wait(self, deadline: float) -> None:
    """Waits until the tracker has ended; drops it at the deadline, in time.monotonic()."""
    if self._is_dropped():
      return
    self._thread.join(max(deadline - time.monotonic(), 0.0))
    if self._thread.is_alive():
      self._drop(f"{self._call[0]} has not returned {FINISH_SECONDS:g} s after the end")


class Trackers:
  """All trackers of one start of a run; no method raises."""

  def __init__(self, makers: Mapping[str, Callable[[], Tracker]], run: TrackedRun | None):
    """Starts each tracker in a thread of its own.

    Args:
      makers: name -> function that makes the tracker; a process that does not write has none.
      run: the run to track; it may be None without makers.
    """
    self._workers = [_Worker(name, make, run) for name, make in makers.items() if run is not None]

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Passes on the finite metrics of a logged step."""
    for worker in self._workers:
      worker.put("log", step, finite(metrics))

  def evaluation(self, step: int, values: Mapping[str, Any]) -> None:
    """Passes on the finite values of an evaluation."""
    for worker in self._workers:
      worker.put("evaluation", step, finite(values))

  def close(self, summary: Mapping[str, Any] | None, report: str | None) -> None:
    """Ends the trackers, and waits up to `FINISH_SECONDS` for all of them; see `Tracker.finish`."""
    deadline = time.monotonic() + FINISH_SECONDS
    for worker in self._workers:
      worker.finish(deadline, summary, report)
    for worker in self._workers:
      worker.wait(deadline)
