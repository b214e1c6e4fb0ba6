"""Where the wall time of a run goes, over all its starts: a clock of sections, kept in a file."""

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

# init: from the start of the process to the loop. compile: of the train step. data: waiting for the
# next batch. step: steps whose result was kept. evaluation: with its compilation. saving: what
# blocks. finish: samples and results. lost: steps that a restart made again.
SECTIONS = ("init", "compile", "data", "step", "evaluation", "saving", "finish", "lost")
# Marks of so many saves: more than there are checkpoints that a run may be resumed from.
_MARKS = 32
# Object stores take a moment for each write.
_UPLOAD_SECONDS = 30.0


def goodput(seconds: Mapping[str, float]) -> float:
  """Share of the time that went into steps that were kept, 0 to 1; NaN without any time.

  >>> goodput({"init": 1.0, "step": 3.0})
  0.75
  """
  total = sum(seconds.values())
  return seconds["step"] / total if total else math.nan


def describe(seconds: Mapping[str, float]) -> str:
  """One line of percentages, the largest first; what rounds to nothing is left out.

  >>> describe({"init": 0.2, "compile": 5.0, "step": 94.8, "lost": 0.0})
  'goodput 94.8 %: step 94.8, compile 5.0, init 0.2'
  """
  total = sum(seconds.values()) or math.nan
  shares = sorted(((100 * s / total, name) for name, s in seconds.items()), reverse=True)
  parts = (f"{name} {share:.1f}" for share, name in shares if share >= 0.05)
  return f"goodput {100 * goodput(seconds):.1f} %: {', '.join(parts)}"


class Goodput:
  """The clock of one start of a run; it belongs to one thread.

  Every moment belongs to one section: the innermost that is open, `init` where none is. The time
  between two starts is not counted, nor is that between the last note and a kill: nobody wrote it
  down.
  """

  def __init__(
    self,
    workdir: Workdir,
    *,
    started: float | None = None,
    entered: Callable[[str], None] = lambda section: None,
  ):
    """Goes on from what earlier starts noted.

    Args:
      workdir: of the run. A missing or damaged file there counts as no time.
      started: `time.monotonic()` when this start began; now if None.
      entered: told the section whenever another one begins or is gone on with.
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
      step: restored; 0 when there is nothing to restore.
    """
    # Between marks the steps took equally long, for all that is known.
    steps, seconds = np.asarray(self._marks).T
    kept = float(np.interp(step, steps, seconds))
    self._seconds["lost"] += self._seconds["step"] - kept
    self._seconds["step"] = kept
    self._marks = [mark for mark in self._marks if mark[0] < step] + [(step, kept)]

  def section(self, name: str) -> _Section:
    """A context in which time is counted for `name`, and no longer for the section around it."""
    return self._contexts[name]

  def enter(self, name: str) -> None:
    """Begins a section inside the present one."""
    self._count()
    self._open.append(name)
    self._entered(name)

  def leave(self) -> None:
    """Goes on with the section around the present one."""
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
    """Remembers how long the steps up to a checkpoint took, should a start resume from it."""
    self._count()
    if step > self._marks[-1][0]:
      self._marks = [*self._marks[-_MARKS:], (step, self._seconds["step"])]

  def note(self, step: int) -> None:
    """Writes the time down, whole; on a full disk, not.

    Args:
      step: updates made; their metrics have arrived.
    """
    if not is_local(self._workdir.path) and time.monotonic() - self._noted < _UPLOAD_SECONDS:
      return
    seconds = self.sections()
    # Also after a save of this very step: what passed since is no part of a later one.
    marks = [mark for mark in self._marks if mark[0] < step] + [(step, seconds["step"])]
    try:
      self._workdir.write_json(files.GOODPUT, {"seconds": seconds, "marks": marks})
      self._noted, self._failing = time.monotonic(), False
    except OSError as error:
      if not self._failing:
        _LOG.error("the run's time cannot be noted (%s); it is tried again", error.strerror)
      self._failing = True


class _Section:
  """The context of one section; made once, because a step enters several."""

  __slots__ = ("_clock", "_name")

  def __init__(self, clock: Goodput, name: str):
    self._clock, self._name = clock, name

  def __enter__(self) -> None:
    self._clock.enter(self._name)

  def __exit__(self, *exc_info: Any) -> None:
    self._clock.leave()
