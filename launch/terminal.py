"""The only place that writes for people while a command works: log and progress, on stderr.

On a terminal the phases that go on are bars at the bottom, which move four times a second whatever
the program does, and log lines stand above them. Elsewhere a phase that takes longer than a few
seconds is a log line, and half a minute without a line is ended by one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from egad_jax import progress

_LOG = logging.getLogger("egad_jax")
_REFRESH_PER_SECOND = 4
# Phases shorter than this, in seconds, leave no line.
_WORTH_A_LINE = 3.0
_LONGEST_SILENCE = 30.0


class _Handler(logging.StreamHandler):
  """Writes to whatever stderr is at the time: bars stand in for it while they are there."""

  def __init__(self) -> None:
    logging.Handler.__init__(self)
    self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    self.last = time.monotonic()

  @property
  def stream(self) -> Any:
    return sys.stderr

  def emit(self, record: logging.LogRecord) -> None:
    super().emit(record)
    self.last = time.monotonic()


@contextlib.contextmanager
def opened() -> Iterator[Terminal]:
  """The terminal of this process, for as long as its command works."""
  terminal = Terminal()
  try:
    yield terminal
  finally:
    terminal.close()


def show_only_warnings() -> None:
  """Shows no phases either: what all processes of a run would say alike, the first one says."""
  _LOG.setLevel(logging.WARNING)


class Terminal:
  """Shows phases and the log lines of this project."""

  def __init__(self) -> None:
    """Takes over the log of this project, and shows bars if stderr is a terminal."""
    self._handler = _Handler()
    _LOG.addHandler(self._handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    self._phases: list[_PlainPhase] = []
    self._closed = threading.Event()
    self._bars = _make_bars() if _is_terminal() else None
    if self._bars:
      self._bars.start()
    else:
      threading.Thread(target=self._break_silence, name="terminal", daemon=True).start()
    progress.listen(self)

  def begin(self, name: str, total: int | None, completed: int, is_told: bool) -> progress.Phase:
    """See `progress.Listener`."""
    if not _LOG.isEnabledFor(logging.INFO):
      return progress.Phase()
    if self._bars:
      return _BarPhase(self._bars, name, total, completed, is_told)
    phase = _PlainPhase(self._phases, name, total, completed, is_told)
    self._phases.append(phase)
    return phase

  def close(self) -> None:
    """Takes the bars away: what is written afterwards stands below the log."""
    progress.listen(None)
    self._closed.set()
    bars, self._bars = self._bars, None
    if bars:
      bars.stop()
    _LOG.removeHandler(self._handler)
    _LOG.propagate = True

  def _break_silence(self) -> None:
    while not self._closed.wait(_WORTH_A_LINE / 10):
      phase = self._phases[-1] if self._phases else None
      if phase and phase.is_due(self._handler.last):
        phase.tell()


def _is_terminal() -> bool:
  try:
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
  except (AttributeError, ValueError):  # There is no stderr, or it is closed.
    return False


class _BarPhase(progress.Phase):
  is_bar = True

  def __init__(
    self, bars: Any, name: str, total: int | None, completed: int, is_told: bool
  ) -> None:
    self._bars, self._name, self._is_told = bars, name, is_told
    self._started = self._shown = time.monotonic()
    self._waiting = 0
    self._task = bars.add_task(name, total=total, completed=completed, note="")

  def update(self, advance: int = 0, note: str = "") -> None:
    self._waiting += advance
    now = time.monotonic()
    # A bar is drawn a few times a second, and there may be millions of documents.
    if now - self._shown >= 0.2 / _REFRESH_PER_SECOND:
      self._bars.update(self._task, advance=self._waiting, **({"note": note} if note else {}))
      self._shown, self._waiting = now, 0

  def end(self) -> None:
    self._bars.remove_task(self._task)
    seconds = time.monotonic() - self._started
    if self._is_told and seconds >= _WORTH_A_LINE:
      _LOG.info("%s: %.1f s", self._name, seconds)


class _PlainPhase(progress.Phase):
  def __init__(
    self, phases: list[_PlainPhase], name: str, total: int | None, completed: int, is_told: bool
  ) -> None:
    self._phases, self._name, self._is_told = phases, name, is_told
    self._total, self._completed = total, completed
    self._started, self._note, self._told = time.monotonic(), "", False

  def update(self, advance: int = 0, note: str = "") -> None:
    self._completed += advance
    self._note = note or self._note

  def is_due(self, last_line: float) -> bool:
    """Whether it should say how it stands, given when the last line was written."""
    now = time.monotonic()
    new = not self._told and now - self._started >= _WORTH_A_LINE
    return new or now - last_line >= _LONGEST_SILENCE

  def tell(self) -> None:
    """Says how it stands."""
    self._told = True
    amount = f"{self._completed:,}" if self._completed or self._total else ""
    amount += f" of {self._total:,}" if self._total else ""
    seconds = time.monotonic() - self._started
    words = ", ".join(word for word in (amount, self._note, f"{seconds:.0f} s") if word)
    _LOG.info("%s … (%s)", self._name, words)

  def end(self) -> None:
    if self in self._phases:
      self._phases.remove(self)
    if self._told and self._is_told:
      _LOG.info("%s: %.1f s", self._name, time.monotonic() - self._started)


def _make_bars() -> Any:
  from rich import console, progress, text

  class Console(console.Console):
    """A console that never hides the cursor: a killed process could not bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
      del show
      return False

  class Amount(progress.ProgressColumn):
    """Units done, of all if that is known; nothing where none are counted."""

    def render(self, task: progress.Task) -> text.Text:
      if task.total is not None:
        return text.Text(f"{task.completed:,.0f}/{task.total:,.0f}")
      return text.Text(f"{task.completed:,.0f}" if task.completed else "")

  class Left(progress.TimeRemainingColumn):
    """Estimated time to the end, where there is one."""

    def render(self, task: progress.Task) -> text.Text:
      return text.Text("ETA ") + super().render(task) if task.total is not None else text.Text()

  return progress.Progress(
    progress.SpinnerColumn(),
    progress.TextColumn("{task.description}", markup=False),
    progress.BarColumn(bar_width=24),
    Amount(),
    progress.TimeElapsedColumn(),
    Left(),
    progress.TextColumn("{task.fields[note]}", markup=False),
    console=Console(stderr=True, force_terminal=True),
    refresh_per_second=_REFRESH_PER_SECOND,
    transient=True,
    # stdout is for results, wherever it goes.
    redirect_stdout=False,
  )
