"""A clock that says where the wall time of a run goes, over all its starts; kept in a file."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from egad_jax.durability import workdir as files
from egad_jax.durability.workdir import Workdir
from egad_jax.files.storage import is_local

_LOG = logging.getLogger(__name__)

# init: from the start of the process to the loop. compile: compilation of the train step. data:
# waiting for the next batch. step: steps whose result was kept. evaluation: evaluations with their
# compilation. saving: the part of a save that blocks the loop. finish: samples and results.
# lost: steps that a restart had to make again.
SECTIONS = ("init", "compile", "data", "step", "evaluation", "saving", "finish", "lost")
# Number of saves whose time is remembered: more than there are checkpoints to resume from.
_MARKS = 32
# Least seconds between two writes to an object store, where each write takes a moment.
_UPLOAD_SECONDS = 30.0


def goodput(seconds: Mapping[str, float]) -> float:
  """The share of the time, 0 to 1, that went into steps that were kept; NaN if no time passed.

  >>> goodput({"init": 1.0, "step": 3.0})
  0.75
  """
  total = sum(seconds.values())
  return seconds["step"] / total if total else math.nan


def describe(seconds: Mapping[str, float]) -> str:
  """One line of percentages, the largest first; a share that rounds to 0.0 is left out.

  >>> describe({"init": 0.2, "compile": 5.0, "step": 94.8, "lost": 0.0})
  'goodput 94.8 %: step 94.8, compile 5.0, init 0.2'
  """
  total = sum(seconds.values()) or math.nan
  shares = sorted(((100 * s / total, name) for name, s in seconds.items()), reverse=True)
  parts = (f"{name} {share:.1f}" for share, name in shares if share >= 0.05)
  return f"goodput {100 * goodput(seconds):.1f} %: {', '.join(parts)}"


class Goodput:
  """The clock of one start of a run, for use by one thread.

  Every moment belongs to one section: the innermost open one, or `init` if none is open. Neither
  the time between two starts is counted nor that between the last note and a kill, which no file
  records.
  """

  def __init__(
    self,
    workdir: Workdir,
    *,
    started: float | None = None,
    entered: Callable[[str], None] = lambda section: None,
  ):
    """Continues from what earlier starts noted.

    Args:
      workdir: the run's directory. A missing or damaged file there counts as no time.
      started: `time.monotonic()` when this start began; None for now.
      entered: called with the name of a section whenever it begins or continues.
    """
    self._workdir, self._entered = workdir, entered
    self._seconds = dict.fromkeys(SECTIONS, 0.0)
    # (step, seconds of kept steps up to it), ascending.
    self._marks: list[tuple[int, float]] = [(0, 0.0)]
    self._read()
    self._contexts = {section: _Section(self, section) for section in SECTIONS}
    self._open = ["init"]
    self._noted, self._failing = -math.inf, False
    self._since = time.monotonic() if started is None else started
    entered("init")

  def _read(self) -> None:
    try:
      record = self._workdir.read_json(files.GOODPUT)
      if record is None:
        return
      seconds = {name: float(record["seconds"][name]) for name in SECTIONS}
      marks = [(int(step), float(at)) for step, at in record["marks"]]
      if not marks or not all(map(math.isfinite, seconds.values())):
        raise ValueError("no numbers")
    except (ValueError, TypeError, KeyError) as error:
      path = self._workdir / files.GOODPUT
      _LOG.warning("%s is damaged (%s): the time of earlier starts is forgotten", path, error)
      return
    self._seconds, self._marks = seconds, marks

  def resume(self, step: int) -> None:
    """Counts the earlier starts' steps beyond `step`, which will be made again, as lost.

    Args:
      step: step of the restored checkpoint; 0 if there is none.
    """
    # Only the marks are known, so the steps between two marks count as equally long.
    steps, seconds = np.asarray(self._marks).T
    kept = float(np.interp(step, steps, seconds))
    self._seconds["lost"] += self._seconds["step"] - kept
    self._seconds["step"] = kept
    self._marks = [mark for mark in self._marks if mark[0] < step] + [(step, kept)]

  def section(self, name: str) -> _Section:
    """A context manager inside which time counts for `name`, not for the section around it."""
    return self._contexts[name]

  def enter(self, name: str) -> None:
    """Begins a section inside the current one."""
    self._count()
    self._open.append(name)
    self._entered(name)

  def leave(self) -> None:
    """Ends the current section and continues the one around it."""
    self._count()
    self._open.pop()
    self._entered(self._open[-1])

  def _count(self) -> None:
    now = time.monotonic()
    self._seconds[self._open[-1]] += now - self._since
    self._since = now

  def sections(self) -> dict[str, float]:
    """Seconds of each section so far, over all starts."""
    self._count()
    return dict(self._seconds)

  def seconds(self) -> float:
    """Seconds so far, over all starts."""
    return sum(self.sections().values())

  def saved(self, step: int) -> None:
    """Remembers how long the steps up to a checkpoint took, in case a start resumes from it."""
    self._count()
    if step > self._marks[-1][0]:
      self._marks = [*self._marks[-_MARKS:], (step, self._seconds["step"])]

  def note(self, step: int) -> None:
    """Writes the time to its file; if that fails, it logs an error and the run goes on.

    Args:
      step: number of steps made, whose metrics have arrived.
    """
    if not is_local(self._workdir.path) and time.monotonic() - self._noted < _UPLOAD_SECONDS:
      return
    seconds = self.sections()
    # A mark of this very step is replaced: the time since its save belongs to no later step.
    marks = [mark for mark in self._marks if mark[0] < step] + [(step, seconds["step"])]
    try:
      self._workdir.write_json(files.GOODPUT, {"seconds": seconds, "marks": marks})
      self._noted, self._failing = time.monotonic(), False
    except OSError as error:
      if not self._failing:
        _LOG.error("the run's time cannot be noted (%s); it is tried again", error.strerror)
      self._failing = True


class _Section:
  """The context manager of one section; made once, because every step enters several."""

  __slots__ = ("_clock", "_name")

  def __init__(self, clock: Goodput, name: str):
    self._clock, self._name = clock, name

  def __enter__(self) -> None:
    self._clock.enter(self._name)

  def __exit__(self, *exc_info: Any) -> None:
    self._clock.leave()
