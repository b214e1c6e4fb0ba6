"""The train loop: keeps the devices busy and the runs' files consistent with their checkpoints.

A run by itself is one session. Several sessions whose students share a teacher take each step in
turn, on the same batch with the same outputs of the teacher.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from egad_jax import processes, progress
from egad_jax.data.batches import AnyBatch
from egad_jax.durability import workdir as files
from egad_jax.durability.checkpoints import CheckpointError, Checkpoints
from egad_jax.durability.preemption import Interrupted, Preempted, Preemption
from egad_jax.durability.watchdog import Watchdog
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError
from egad_jax.reporting.metric_log import shown
from egad_jax.training import held_out_rows, results
from egad_jax.training.compiled_run import CompiledRun, evaluate_together, fill_together
from egad_jax.training.experiment import Experiment
from egad_jax.training.goodput import Goodput, describe
from egad_jax.training.profiling import Profiler
from egad_jax.training.session import LoopOptions, Session

__all__ = ["LoopOptions", "Student", "train", "train_together"]

_LOG = logging.getLogger(__name__)
# Exceptions that every process of a run raises at the same point of the program.
_TOGETHER = (InputError, Preempted, CheckpointError, FloatingPointError)


def _pass() -> None:
  """The check of an evaluation that is always completed."""


@dataclasses.dataclass(frozen=True)
class Student:
  """A run that is trained beside others.

  Attributes:
    name: its name among them; "" for a run by itself.
    experiment: its experiment; beside others, with a teacher from `teachers.share`.
    options: when it logs, saves and evaluates.
    workdir: its directory, open, with its config stored in it.
  """

  name: str
  experiment: Experiment
  options: LoopOptions
  workdir: Workdir


class _Loop:
  """Takes the sessions of runs that read the same batches through their steps."""

  def __init__(self, sessions: Sequence[Session], preemption: Preemption, profiler: Profiler):
    self.sessions, self._preemption, self._profiler = sessions, preemption, profiler
    # A run by itself has no name.
    self._is_run = not sessions[0].name
    self.failures: dict[Session, FloatingPointError] = {}
    self._phase = progress.Phase()

  def _left(self) -> list[Session]:
    """The sessions that can go on."""
    return [session for session in self.sessions if session not in self.failures]

  def _training(self) -> list[Session]:
    """The sessions that have steps left."""
    return [session for session in self._left() if session.step < session.num_steps]

  def _each(self, sessions: Sequence[Session], act: Callable[[Session], None]) -> None:
    """Calls `act` for sessions; one of several that cannot go on does not keep the others from it.

    Raises:
      FloatingPointError: a run by itself cannot go on.
    """
    for session in sessions:
      try:
        act(session)
      except FloatingPointError as error:
        if self._is_run:
          raise
        self.failures[session] = error
        _LOG.error("%s: this student is given up, the others go on: %s", session.name, error)

  @contextlib.contextmanager
  def _section(self, name: str) -> Iterator[None]:
    """A section of time in the clocks of all sessions."""
    with contextlib.ExitStack() as stack:
      for session in self.sessions:
        stack.enter_context(session.clock.section(name))
      yield

  def begin(self) -> None:
    """Makes the first state of new runs, evaluates it and lets it continue the prompts."""
    new = [session for session in self.sessions if session.is_new]
    if not new:
      return
    for session in new:
      with progress.phase("copying the student to the devices"):
        session.keep(session.experiment.first_state())
    fill_together(
      [session.compiled for session in new],
      [session.state for session in new],
      [session.keep for session in new],
    )
    self.evaluate(new)
    for session in new:
      results.samples_before(session.compiled, session.workdir, session.state())

  def evaluate(self, sessions: Sequence[Session], check: Callable[[], None] = _pass) -> None:
    """Makes and logs the evaluations of the sessions' states.

    Args:
      sessions: the sessions to evaluate; nothing is done for none.
      check: called before each batch; it may raise to abandon the evaluation.
    """
    if not sessions:
      return
    started = time.monotonic()
    with self._section("evaluation"):
      evaluated = evaluate_together(
        [session.compiled for session in sessions],
        [functools.partial(session.state, for_evaluation=True) for session in sessions],
        check,
      )
    for session, result in zip(sessions, evaluated, strict=True):
      session.note_evaluation(result, time.monotonic() - started)

  def train(self) -> None:
    """Runs the steps that are left.

    Raises:
      FloatingPointError: a run by itself had too many skipped steps in a row.
      Preempted: the runs were asked to end.
    """
    if not self._training():
      return
    with self._section("compile"):
      for session in self._training():
        session.compile()
    with self._preemption.between_steps():
      try:
        with self._section("step"), self._shown():
          self._steps()
      except Interrupted:
        self._each(self._left(), lambda session: session.stop())
        for session in self._left():
          session.wait_until_saved()
        for session in self._left():
          session.note_stop()
        raise Preempted from None
      for session in self._left():
        session.wait_until_saved()

  @contextlib.contextmanager
  def _shown(self) -> Iterator[None]:
    """Shows the progress of the steps: in detail of a run by itself, the losses of several."""
    if self._is_run:
      with self.sessions[0].log.shown():
        yield
      return
    training = self._training()
    made, steps = min(s.step for s in training), max(s.num_steps for s in training)
    shown_phase = progress.phase("training", steps, completed=made, is_told=False)
    with shown_phase as self._phase:
      yield

  def _tell_losses(self) -> None:
    """Tells the losses that several sessions have logged since the last call."""
    logged = [(s.name, *s.logged) for s in self.sessions if s.logged]
    for session in self.sessions:
      session.logged = None
    if logged and not self._is_run:
      losses = "  ".join(f"{name} {loss:.4f}" for name, _, loss in logged)
      _LOG.info("step %d: loss %s", logged[0][1], losses)

  def _steps(self) -> None:
    # The previous start may have ended in the middle of an evaluation.
    due = lambda session: session.due(session.options.evaluate_steps)
    self.evaluate(
      [s for s in self._training() if due(s) and s.evaluation() is None], self._preemption.check
    )
    position, batches = -1, iter(())
    for session in self.sessions:
      session.restart_clock()
    while training := self._training():
      self._preemption.check()
      # A student whose last checkpoint is of a later step waits for the others.
      step = min(session.step for session in training)
      now = [session for session in training if session.step == step]
      if step != position:
        batches = now[0].compiled.train_batches(step, now[0].state)
      with self._section("data"):
        batch = next(batches)
      self._step(now, batch)
      position = step + 1
      self._phase.update(1)
      self._evaluate_and_save(now, due)
      self._tell_losses()

  def _step(self, sessions: Sequence[Session], batch: AnyBatch) -> None:
    """Makes a step of each session on a batch."""
    started = self._profiler.call(
      sessions[0].step + 1, lambda: [session.start_step(batch) for session in sessions]
    )
    metrics = dict(zip(sessions, started, strict=True))
    self._each(sessions, lambda session: session.end_step(batch, metrics[session]))

  def _evaluate_and_save(self, now: Sequence[Session], due: Callable[[Session], bool]) -> None:
    saves = [session for session in now if session.save_is_due()]
    evaluates = [session for session in now if due(session)]
    if not saves and not evaluates:
      return
    touched = [session for session in now if session in saves or session in evaluates]
    self._each(touched, lambda session: session.flush())
    training, left = self._training(), self._left()
    self.evaluate([s for s in evaluates if s in training], self._preemption.check)
    for session in saves:
      if session in left:
        session.save()
    for session in self.sessions:
      session.restart_clock()

  def finish(self) -> list[dict[str, Any] | FloatingPointError]:
    """Evaluates the trained students and writes their results.

    Returns:
      For each session its summary, or why it could not go on.
    """
    self.evaluate([session for session in self._left() if session.evaluation() is None])
    with self._section("finish"):
      if not self._is_run:
        held_out_rows.write([(s.compiled, s.workdir, s.state) for s in self._left()])
      return [self.failures.get(session) or session.finish() for session in self.sessions]


def train(
  experiment: Experiment,
  options: LoopOptions,
  workdir: Workdir,
  preemption: Preemption | None = None,
  *,
  started: float | None = None,
  watchdog: Watchdog | None = None,
) -> dict[str, Any]:
  """Trains a run, or resumes it, to its end and writes its results.

  A resumed run starts from the latest whole checkpoint. Its logs are cut back to the checkpoint's
  step, which is also the position in the data.

  Args:
    experiment: an experiment from `from_config.build`.
    options: options from `from_config.loop_options`.
    workdir: the run's directory, open, with the config stored in it.
    preemption: says when to end early; None for never.
    started: `time.monotonic()` when the process began; None for now.
    watchdog: a watchdog that is already running; None to start one with `options.limits`.

  Returns:
    The summary, as written to summary.json.

  Raises:
    FloatingPointError: too many steps in a row were skipped.
    Preempted: the run was asked to end before its last step; it is saved.
  """
  student = Student("", experiment, options, workdir)
  (summary,) = train_together([student], preemption, started=started, watchdog=watchdog)
  assert isinstance(summary, dict)
  return summary


def train_together(
  students: Sequence[Student],
  preemption: Preemption | None = None,
  *,
  on_host: bool = False,
  started: float | None = None,
  watchdog: Watchdog | None = None,
) -> list[dict[str, Any] | FloatingPointError]:
  """Trains, or resumes, runs that read the same batches and share a teacher; see `train`.

  Each student ends bit for bit as if `train` had trained it alone. Only its times differ: they
  include the steps of the other students.

  Args:
    students: the runs; their teachers are from one call of `teachers.share`, and they have the same
      rows, data order, mesh and batch sizes. The first one's limits and profile hold for all.
    preemption: says when to end early; None for never.
    on_host: whether states stay in host memory between their steps.
    started: `time.monotonic()` when the process began; None for now.
    watchdog: a watchdog that is already running; None to start one.

  Returns:
    For each student the summary, as written to its summary.json, or, if it has a name, why it was
    given up: too many steps in a row were skipped.

  Raises:
    FloatingPointError: so it is with the student that has no name.
    Preempted: the runs were asked to end before their last step; they are saved.
  """
  process, options = jax.process_index(), students[0].options
  traces = students[0].workdir / files.PROFILE
  with (
    contextlib.nullcontext(watchdog) if watchdog else Watchdog(options.limits) as watching,
    Profiler(traces, options.profile, process=process) as profiler,
  ):
    watching.process = process
    clocks = [
      Goodput(student.workdir, started=started, entered=watching.enter) for student in students
    ]
    checkpoints = [
      Checkpoints(
        student.workdir / files.CHECKPOINTS,
        keep=student.options.keep,
        keep_best=student.options.keep_best,
      )
      for student in students
    ]
    try:
      found = _train(
        students, checkpoints, clocks, preemption or Preemption(), profiler, on_host=on_host
      )
    except Exception as error:
      # A process that fails alone tells the others by ending. Closing would wait for them.
      if not processes.is_multiprocess() or isinstance(error, _TOGETHER):
        _close(checkpoints)
      raise
    _close(checkpoints)
  for student, summary in zip(students, found, strict=True):
    if student.workdir.writes and isinstance(summary, dict):
      _tell(student.name, summary)
  return found


def _close(checkpoints: Sequence[Checkpoints]) -> None:
  for each in checkpoints:
    each.close()


def _train(
  students: Sequence[Student],
  checkpoints: Sequence[Checkpoints],
  clocks: Sequence[Goodput],
  preemption: Preemption,
  profiler: Profiler,
  *,
  on_host: bool,
) -> list[dict[str, Any] | FloatingPointError]:
  sessions: list[Session] = []
  found: list[dict[str, Any] | FloatingPointError] = []
  try:
    for student, saved, clock in zip(students, checkpoints, clocks, strict=True):
      beside = sessions[0].compiled if sessions else None
      compiled = CompiledRun(student.experiment, beside)
      sessions.append(
        Session(
          student.experiment,
          student.options,
          student.workdir,
          saved,
          clock,
          compiled,
          name=student.name,
          on_host=on_host,
        )
      )
    loop = _Loop(sessions, preemption, profiler)
    loop.begin()
    loop.train()
    found = loop.finish()
  finally:
    for i, session in enumerate(sessions):
      summary = found[i] if found else None
      session.close(summary if isinstance(summary, dict) else None)
  return found


def _tell(name: str, summary: dict[str, Any]) -> None:
  """Logs what a finished run has come to."""
  label = f"{name}: " if name else ""
  before, after = summary["student_before"], summary["student_after"]
  if after["forward_kl"] is None:
    _LOG.warning(
      "%sthe trained student's held-out forward KL is not finite: it is null in the files, and "
      "this student is of no use; a lower optimizer.learning_rate may train one that is",
      label,
    )
  kl, perplexity = (
    [shown(model[key], form) for model in (before, after, summary["teacher"])]
    for key, form in (("forward_kl", ".4f"), ("perplexity", ".2f"))
  )
  _LOG.info(
    "%sdone: held-out forward KL %s -> %s, perplexity %s -> %s (teacher %s)",
    label,
    *kl[:2],
    *perplexity,
  )
  # The summary and the report give the same goodput.
  _LOG.info("%s%s", label, describe(summary["goodput"]))
