"""Reports what a command is doing to a listener that shows it; without one it costs nothing.

Data, models and training report their phases. Only the terminal (launch/terminal.py) knows how a
phase is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Phase:
  """A phase in progress. This class shows nothing; a listener's own subclass does.

  Attributes:
    is_bar: whether every update is visible as a bar, so that log lines with the same content are
      not needed.
  """

  is_bar = False

  def update(self, advance: int = 0, note: str = "") -> None:
    """Counts more units of work as done; may be called from any thread.

    Args:
      advance: units done since the last update.
      note: new text beside the bar; "" to keep the old one.
    """

  def end(self) -> None:
    """Ends the phase, whether or not it succeeded."""


class Listener(Protocol):
  """An object that shows phases."""

  def begin(self, name: str, total: int | None, completed: int, is_told: bool) -> Phase:
    """Begins to show a phase inside those in progress; arguments as for `phase`."""


_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
  """Sets the listener that shows this process's phases; None for none."""
  global _listener  # noqa: PLW0603 # One process has one terminal.
  _listener = listener


@contextlib.contextmanager
def phase(
  name: str, total: int | None = None, *, completed: int = 0, is_told: bool = True
) -> Iterator[Phase]:
  """A context whose work is reported as the phase `name`.

  Args:
    name: the phase in words, such as "reading the teacher".
    total: units of work in all; None if not known.
    completed: units of work that were done before.
    is_told: whether a log line remains of a phase that took long; False where the caller logs one.
  """
  shown = _listener.begin(name, total, completed, is_told) if _listener else Phase()
  try:
    yield shown
  finally:
    shown.end()
