"""What a command is doing, told to whoever shows it; without a listener it costs nothing.

Data, models and training say which phase they are in. Only the terminal (launch/terminal.py) knows
how that looks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Phase:
  """One phase that goes on. This class shows nothing; a listener's own subclass does.

  Attributes:
    is_bar: whether a person sees every update, so that lines that say the same are too much.
  """

  is_bar = False

  def update(self, advance: int = 0, note: str = "") -> None:
    """Counts `advance` more units as done; `note` replaces the words beside the bar unless "".

    May be called from any thread.
    """

  def end(self) -> None:
    """The phase is over, however it ended."""


class Listener(Protocol):
  """Shows phases."""

  def begin(self, name: str, total: int | None, completed: int, is_told: bool) -> Phase:
    """A phase begins inside those that go on already; see `phase`."""


_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
  """Has the phases of this process shown by `listener`, or by nobody if None."""
  global _listener  # noqa: PLW0603 # One process has one terminal.
  _listener = listener


@contextlib.contextmanager
def phase(
  name: str, total: int | None = None, *, completed: int = 0, is_told: bool = True
) -> Iterator[Phase]:
  """Says that what is done in this context is `name`.

  Args:
    name: in words, such as "reading the teacher".
    total: units of work in all, None if that is not known.
    completed: units that were done before.
    is_told: whether a line remains of a phase that took long; False where the caller logs one.
  """
  shown = _listener.begin(name, total, completed, is_told) if _listener else Phase()
  try:
    yield shown
  finally:
    shown.end()
