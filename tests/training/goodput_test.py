"""The clock of sections, by a clock of its own that moves only when told."""

from __future__ import annotations

import json
import math
import time

import pytest

from egad_jax.durability.workdir import Workdir
from egad_jax.training import goodput
from egad_jax.training.goodput import Goodput


class Time:
  """Seconds that pass on request."""

  def __init__(self, monkeypatch):
    self.now = 1000.0
    monkeypatch.setattr(goodput.time, "monotonic", lambda: self.now)

  def __call__(self, seconds):
    self.now += seconds


@pytest.fixture
def passes(monkeypatch):
  return Time(monkeypatch)


@pytest.fixture
def workdir(tmp_path):
  with Workdir(tmp_path) as workdir:
    yield workdir


def spent(clock):
  return {name: seconds for name, seconds in clock.sections().items() if seconds}


def test_every_moment_is_counted_once(workdir, passes):
  clock = Goodput(workdir, started=passes.now - 2)
  passes(1)
  with clock.section("compile"):
    passes(4)
  with clock.section("step"):
    for _ in range(3):
      with clock.section("data"):
        passes(0.5)
      passes(10)
    with clock.section("evaluation"):
      passes(7)
      with clock.section("evaluation"):
        passes(1)
    # What has not ended yet counts, too.
    passes(2)
    assert spent(clock) == {
      **{"init": 3, "compile": 4, "step": 32},
      **{"data": 1.5, "evaluation": 8},
    }
  assert clock.seconds() == 48.5


def test_a_section_that_fails_is_over(workdir, passes):
  clock = Goodput(workdir)

  def fails(seconds):
    passes(seconds)
    raise OSError("full")

  with pytest.raises(OSError, match="full"), clock.section("saving"):
    fails(3)
  passes(5)
  assert spent(clock) == {"saving": 3, "init": 5}


def test_whoever_asks_is_told_what_goes_on(workdir):
  heard = []
  clock = Goodput(workdir, entered=heard.append)
  with clock.section("step"), clock.section("data"):
    pass
  assert heard == ["init", "step", "data", "step", "init"]


def trained(workdir, passes, steps, *, save_at=(), note_at=(), seconds=10.0):
  """One start that is killed after the last of `steps`."""
  clock = Goodput(workdir)
  clock.resume(steps.start - 1)
  passes(1)
  with clock.section("step"):
    for step in steps:
      passes(seconds)
      if step in save_at:
        clock.saved(step)
      if step in note_at:
        clock.note(step)
  return clock


def test_steps_that_are_made_again_are_lost(workdir, passes):
  trained(workdir, passes, range(1, 9), save_at=[3], note_at=[2, 4, 6])
  passes(100)  # Stopped: nobody's.
  clock = Goodput(workdir)
  assert spent(clock) == {"init": 1, "step": 60}  # Steps 7 and 8 nobody noted.
  clock.resume(3)
  assert spent(clock) == {"init": 1, "step": 30, "lost": 30}
  # Killed again, further on: only what was never reached before is lost anew.
  trained(workdir, passes, range(4, 8), save_at=[5], note_at=[7], seconds=20.0)
  clock = Goodput(workdir)
  clock.resume(5)
  assert spent(clock) == {"init": 2, "step": 30 + 40, "lost": 30 + 40}
  assert clock.seconds() == 142
  assert goodput.goodput(clock.sections()) == pytest.approx(70 / 142)


def test_nothing_is_lost_when_the_restored_step_was_noted_last_or_not_at_all(workdir, passes):
  trained(workdir, passes, range(1, 6), save_at=[5], note_at=[4])
  for restored in (4, 5):
    clock = Goodput(workdir)
    clock.resume(restored)
    assert spent(clock) == {"init": 1, "step": 40}


def test_nothing_is_lost_when_the_last_step_was_saved_and_noted(workdir, passes):
  clock = trained(workdir, passes, range(1, 6), save_at=[5])
  with clock.section("step"):
    passes(0.5)
  clock.note(5)
  clock = Goodput(workdir)
  clock.resume(5)
  assert spent(clock) == {"init": 1, "step": 50.5}


def test_everything_is_lost_without_a_checkpoint(workdir, passes):
  trained(workdir, passes, range(1, 6), note_at=[5])
  clock = Goodput(workdir)
  clock.resume(0)
  assert spent(clock) == {"init": 1, "lost": 50}


def test_between_marks_steps_took_equally_long(workdir, passes):
  """As when a checkpoint turns out damaged, and an older one than was remembered is taken."""
  trained(workdir, passes, range(1, 9), note_at=[8])
  clock = Goodput(workdir)
  clock.resume(2)
  assert spent(clock) == {"init": 1, "step": 20, "lost": 60}


def test_marks_stay_few_and_those_that_stay_are_the_latest(workdir, passes):
  trained(workdir, passes, range(1, 101), save_at=range(1, 101), note_at=[100], seconds=1.0)
  trained(workdir, passes, range(101, 201), save_at=range(101, 201), note_at=[200])
  marks = workdir.read_json("goodput.json")["marks"]
  assert len(marks) < 40
  assert marks[-1] == [200, 1100.0]
  clock = Goodput(workdir)
  clock.resume(190)
  assert spent(clock)["lost"] == 100


@pytest.mark.parametrize(
  "text",
  [
    "",
    "{",
    "[]",
    "null",
    '{"seconds": {}}',
    '{"seconds": 3, "marks": []}',
    {"marks": [[0]]},
    {"marks": []},
    {"seconds": dict.fromkeys(goodput.SECTIONS, math.nan)},
  ],
  ids=repr,
)
def test_a_damaged_file_is_no_time_and_no_error(workdir, text, passes, caplog):
  if not isinstance(text, str):
    trained(workdir, passes, range(1, 3), note_at=[2])
    text = json.dumps(workdir.read_json("goodput.json") | text)
  (workdir / "goodput.json").write_text(text)
  clock = Goodput(workdir)
  clock.resume(7)
  passes(2)
  assert spent(clock) == {"init": 2}
  assert ("forgotten" in caplog.text) == (text != "null")
  clock.note(8)
  assert Goodput(workdir).seconds() == 2


def test_a_full_disk_leaves_the_last_note_and_no_error(workdir, passes, monkeypatch, caplog):
  clock = trained(workdir, passes, range(1, 3), note_at=[2])
  before = workdir.read_json("goodput.json")

  def full(*_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(type(workdir / "x"), "replace", full)
    for step in (3, 4):
      clock.note(step)
  assert workdir.read_json("goodput.json") == before
  assert caplog.text.count("No space left") == 1
  clock.note(5)
  assert workdir.read_json("goodput.json")["marks"][-1][0] == 5


def test_an_object_store_is_written_to_now_and_then(bucket, passes):
  with Workdir(bucket) as workdir:
    clock = Goodput(workdir)
    for step in range(1, 62):
      passes(1)
      clock.note(step)
      assert workdir.read_json("goodput.json")["marks"][-1][0] == 1 + (step - 1) // 30 * 30


def test_one_line_says_where_the_time_went():
  seconds = dict.fromkeys(goodput.SECTIONS, 0.0) | {"step": 913.0, "compile": 50.0, "data": 0.3}
  seconds |= {"evaluation": 36.7}
  line = "goodput 91.3 %: step 91.3, compile 5.0, evaluation 3.7"
  assert goodput.describe(seconds) == line
  nothing = dict.fromkeys(goodput.SECTIONS, 0.0)
  assert math.isnan(goodput.goodput(nothing))
  assert goodput.describe(nothing) == "goodput nan %: "


def test_a_section_costs_microseconds(workdir):
  clock = Goodput(workdir)
  best = math.inf
  for _ in range(20):
    started = time.perf_counter()
    for _ in range(100):
      with clock.section("data"):
        pass
    best = min(best, time.perf_counter() - started)
  assert best / 100 < 5e-6
