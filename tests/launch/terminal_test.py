"""What people see while a command works, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest

from egad_jax import progress
from launch import terminal

LOG = logging.getLogger("egad_jax.training.loop")


class Stream(io.StringIO):
  """Text that was written, with the times of writing."""

  def __init__(self, is_terminal):
    super().__init__()
    self._is_terminal, self.times = is_terminal, []

  def isatty(self):
    return self._is_terminal

  def write(self, text):
    self.times.append(time.monotonic())
    return super().write(text)

  def rows(self):
    """The rows of a screen after all of it: it knows no more than a terminal must."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
      if part == "\n":
        row, column = row + 1, 0
        rows += [""] * (row + 1 - len(rows))
      elif part == "\r":
        column = 0
      elif part == "\x1b[2K":
        rows[row] = ""
      elif part.endswith("A"):
        row -= int(part[2:-1] or 1)
      elif not part.startswith("\x1b"):
        rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
        column += len(part)
    return [text.rstrip() for text in rows]


@pytest.fixture
def screen(monkeypatch):
  """Makes stderr a stream; the terminal's width is that of a small window."""
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "100")

  def make(is_terminal=True):
    stream = Stream(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream

  return make


def test_log_lines_stand_alone_above_the_bar(screen, capsys):
  stream = screen()
  with terminal.opened(), progress.phase("training", 24) as phase:
    for step in range(3):
      phase.update(1, "loss 1.0")
      LOG.info("step %d [not] markup", step)
      print("from elsewhere", file=sys.stderr)
      time.sleep(0.3)
    on_screen = stream.rows()
  texts = [row for row in on_screen if row]
  assert [re.sub(r"^\d\d:\d\d:\d\d ", "", row) for row in texts[:2]] == [
    "step 0 [not] markup",
    "from elsewhere",
  ]
  assert sum("not] markup" in row for row in texts) == 3
  # Nothing shares a row with the bar, which is the last one.
  bars = [row for row in texts if "training" in row]
  assert bars == texts[-1:]
  assert re.search(r"3/24 .*loss 1\.0$", bars[0])
  # And nothing is left of it.
  assert not any("training" in row for row in stream.rows())
  # Results have stdout for themselves.
  assert capsys.readouterr().out == ""


def test_something_moves_while_the_program_does_not(screen):
  stream = screen()
  with terminal.opened(), progress.phase("compiling the train step"):
    time.sleep(1.5)
  gaps = [after - before for before, after in zip(stream.times, stream.times[1:], strict=False)]
  assert "compiling the train step" in stream.getvalue()
  assert max(gaps) < 1


def test_long_phases_leave_a_line_and_short_ones_do_not(screen, monkeypatch):
  stream = screen()
  monkeypatch.setattr(terminal, "_WORTH_A_LINE", 0.2)
  with terminal.opened():
    with progress.phase("long"):
      time.sleep(0.3)
    with progress.phase("long but told by itself", is_told=False):
      time.sleep(0.3)
    with progress.phase("short"):
      pass
  (line,) = [row for row in stream.rows() if row]
  assert re.fullmatch(r"\d\d:\d\d:\d\d long: 0\.\d s", line)


@pytest.mark.parametrize("how", ["pipe", "dumb"])
def test_elsewhere_there_are_whole_lines(screen, monkeypatch, how):
  stream = screen(is_terminal=how == "dumb")
  if how == "dumb":
    monkeypatch.setenv("TERM", "dumb")
  monkeypatch.setattr(terminal, "_WORTH_A_LINE", 0.2)
  monkeypatch.setattr(terminal, "_LONGEST_SILENCE", 0.4)
  with terminal.opened():
    with progress.phase("packing", 10) as phase:
      phase.update(4, "documents")
      time.sleep(1.0)
    with progress.phase("short"):
      pass
    assert not phase.is_bar
  text = stream.getvalue()
  assert "\x1b" not in text
  assert "\r" not in text
  lines = text.splitlines()
  assert all(re.match(r"\d\d:\d\d:\d\d packing", line) for line in lines)
  assert "packing … (4 of 10, documents, 0 s)" in lines[0]
  # It begins, breaks the silence at least once, and ends.
  assert len(lines) >= 3
  assert re.search(r"packing: 1\.\d s$", lines[-1])


def test_the_other_processes_of_a_run_show_only_warnings(screen):
  stream = screen()
  with terminal.opened():
    terminal.show_only_warnings()
    LOG.info("step 1")
    LOG.warning("a disk is full")
    with progress.phase("training", 24):
      time.sleep(0.5)
  assert [row[9:] for row in stream.rows() if row] == ["a disk is full"]


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed at the start", "closed"])
def test_a_command_without_stderr_works(monkeypatch, stream):
  if stream:
    stream.close()
  monkeypatch.setattr(sys, "stderr", stream)
  monkeypatch.setattr(logging, "raiseExceptions", False)
  with terminal.opened(), progress.phase("training", 24) as phase:
    phase.update(1)
    LOG.info("step 1")


def test_nobody_listens_unless_a_terminal_is_open():
  with progress.phase("training", 24) as phase:
    phase.update(1, "loss 1.0")
  assert type(phase) is progress.Phase
