"""How several sessions take their steps in turn, on stand-ins that compute nothing."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from egad_jax.durability.preemption import Preempted, Preemption
from egad_jax.training import loop


class Options:
  """As `LoopOptions`: an evaluation every so many steps."""

  def __init__(self, evaluate_steps: int):
    self.evaluate_steps = evaluate_steps


class Session:
  """Stands in for a session; what it is told to do goes into `calls`, which all share."""

  def __init__(self, name, calls, *, step=0, steps=4, fails_at=0, evaluate_steps=0, save_steps=2):
    self.name, self.calls, self.step, self.num_steps = name, calls, step, steps
    self.options, self.compiled = Options(evaluate_steps), self
    self._fails_at, self._save_steps = fails_at, save_steps
    self.is_new, self.logged, self.evaluated = False, None, None
    self.clock = self.log = self
    self.workdir = None

  def section(self, name):
    return contextlib.nullcontext()

  def shown(self):
    return contextlib.nullcontext()

  def train_batches(self, start, state_of):
    return itertools.count(start)

  def state(self, *, for_evaluation=False):
    return self.name

  def compile(self):
    pass

  def restart_clock(self):
    pass

  def start_step(self, batch):
    assert batch == self.step
    self.calls.append((self.name, "step", batch))
    return (self.name, batch)

  def end_step(self, batch, metrics):
    assert metrics == (self.name, batch)
    self.flush()
    self.step += 1

  def flush(self):
    if self._fails_at and self.step >= self._fails_at:
      raise FloatingPointError(f"step {self.step} is not finite")

  def due(self, every):
    return bool(every) and self.step % every == 0

  def save_is_due(self):
    return self.step % self._save_steps == 0 or self.step == self.num_steps

  def save(self):
    self.calls.append((self.name, "save", self.step))

  def evaluation(self):
    return self.evaluated if self.evaluated == self.step else None

  def note_evaluation(self, result, seconds):
    self.evaluated = self.step

  def stop(self):
    self.flush()
    if (self.name, "save", self.step) not in self.calls:
      self.save()

  def wait_until_saved(self):
    self.calls.append((self.name, "saved", self.step))

  def note_stop(self):
    pass

  def finish(self):
    return {"name": self.name}


class Traces:
  """Stands in for the profiler: calls the program."""

  def call(self, step, program, *arguments):
    return program(*arguments)


class After(Preemption):
  """Asks for the end after so many steps."""

  def __init__(self, steps):
    super().__init__()
    self._left = steps

  def requested(self):
    self._left -= 1
    return self._left < 0


@pytest.fixture
def calls(monkeypatch):
  """What all sessions were told to do, in order; an evaluation has the names of the evaluated."""
  made = []

  def evaluate(runs, states, check):
    check()
    assert [state() for state in states] == [run.name for run in runs]
    made.append(("evaluate", *(run.name for run in runs)))
    return [{} for _ in runs]

  monkeypatch.setattr(loop, "evaluate_together", evaluate)
  monkeypatch.setattr(loop.held_out_rows, "write", lambda runs: None)
  return made


def trained(sessions, preemption=None):
  made = loop._Loop(sessions, preemption or Preemption(), Traces())
  made.begin()
  made.train()
  return made.finish()


def steps_of(calls, name):
  return [batch for who, what, *rest in calls if (who, what) == (name, "step") for batch in rest]


def test_all_sessions_take_a_step_before_the_next_batch_comes(calls):
  assert trained([Session("a", calls), Session("b", calls)]) == [{"name": "a"}, {"name": "b"}]
  steps = [call for call in calls if "step" in call]
  assert steps == [(name, "step", batch) for batch in range(4) for name in "ab"]


def test_one_with_fewer_steps_ends_earlier(calls):
  trained([Session("a", calls, steps=1), Session("b", calls)])
  assert steps_of(calls, "a") == [0]
  assert steps_of(calls, "b") == [0, 1, 2, 3]
  assert ("a", "save", 1) in calls


def test_one_that_was_saved_later_waits_for_the_others(calls):
  trained([Session("a", calls, step=3), Session("b", calls, step=1)])
  assert [call for call in calls if "step" in call] == [
    ("b", "step", 1),
    ("b", "step", 2),
    ("a", "step", 3),
    ("b", "step", 3),
  ]


def test_those_that_are_due_are_evaluated_together(calls):
  every = {"a": 2, "b": 2, "c": 1}
  trained([Session(name, calls, evaluate_steps=steps) for name, steps in every.items()])
  assert [call[1:] for call in calls if call[0] == "evaluate"] == [
    # Resumed at step 0 without an evaluation of it; then after each step but the last.
    ("a", "b", "c"),
    ("c",),
    ("a", "b", "c"),
    ("c",),
    ("a", "b", "c"),
  ]


def test_one_that_fails_does_not_end_the_others(calls):
  sessions = [Session("a", calls), Session("bad", calls, fails_at=2), Session("c", calls)]
  first, failure, last = trained(sessions)
  assert (first, last) == ({"name": "a"}, {"name": "c"})
  assert isinstance(failure, FloatingPointError)
  # Its metrics are read a step late, and a save reads them too.
  assert steps_of(calls, "bad") == [0, 1]
  assert steps_of(calls, "c") == [0, 1, 2, 3]
  assert ("bad", "save", 2) not in calls
  assert ("c", "save", 2) in calls


def test_the_batch_is_the_right_one_after_the_slowest_has_failed(calls):
  sessions = [Session("bad", calls, fails_at=1, save_steps=9), Session("b", calls, step=3)]
  trained(sessions)
  assert steps_of(calls, "b") == [3]


def test_a_failure_of_a_run_by_itself_is_raised(calls):
  with pytest.raises(FloatingPointError, match="step 1"):
    trained([Session("", calls, fails_at=1)])


def test_the_only_student_of_a_sweep_is_given_up_as_among_others(calls):
  (failure,) = trained([Session("a", calls, fails_at=1)])
  assert isinstance(failure, FloatingPointError)


def test_all_are_saved_before_the_end_that_was_asked_for(calls):
  sessions = [Session("a", calls), Session("bad", calls, fails_at=3), Session("c", calls, steps=3)]
  with pytest.raises(Preempted):
    trained(sessions, After(3))
  assert [call for call in calls if call[-1] == 3] == [
    # The last step of one, and then what else is not saved.
    ("c", "save", 3),
    ("a", "save", 3),
    ("a", "saved", 3),
    ("c", "saved", 3),
  ]
