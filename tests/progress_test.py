"""Phases reach the listener in order, and end however their work ends."""

from __future__ import annotations

import pytest

from egad_jax import progress


class Recorder:
  """Notes what it is told."""

  def __init__(self):
    self.events = []

  def begin(self, name, total, completed, is_told):
    self.events.append(("begin", name, total, completed, is_told))
    events = self.events

    class Phase(progress.Phase):
      def update(self, advance=0, note=""):
        events.append(("update", name, advance, note))

      def end(self):
        events.append(("end", name))

    return Phase()


@pytest.fixture
def recorder():
  recorder = Recorder()
  progress.listen(recorder)
  yield recorder
  progress.listen(None)


def test_phases_nest_and_end_with_their_errors(recorder):
  def fail():
    with progress.phase("outer", 2, completed=1) as outer, progress.phase("inner", is_told=False):
      outer.update(1, "rows")
      raise ArithmeticError

  with pytest.raises(ArithmeticError):
    fail()
  assert recorder.events == [
    ("begin", "outer", 2, 1, True),
    ("begin", "inner", None, 0, False),
    ("update", "outer", 1, "rows"),
    ("end", "inner"),
    ("end", "outer"),
  ]
