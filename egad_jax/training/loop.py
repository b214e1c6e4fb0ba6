"""The loop: keeps the devices busy, and everything that is kept of a run in order."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import jax

from egad_jax import processes, progress
from egad_jax.durability import workdir as files
from egad_jax.durability.checkpoints import CheckpointError, Checkpoints
from egad_jax.durability.jsonl_log import JsonlLog
from egad_jax.durability.preemption import Interrupted, Preempted, Preemption
from egad_jax.durability.watchdog import Watchdog
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError
from egad_jax.reporting.metric_log import MetricLog, averages, shown
from egad_jax.training import results
from egad_jax.training.bad_batch import note_skipped
from egad_jax.training.compiled_run import CompiledRun
from egad_jax.training.goodput import Goodput, describe
from egad_jax.training.profiling import Profiler
from egad_jax.training.run import Run
from egad_jax.training.step import TrainState
from egad_jax.training.utilization import Utilization, minimum_flops

_LOG = logging.getLogger(__name__)
# What ends all processes of a run at the same place.
_TOGETHER = (InputError, Preempted, CheckpointError, FloatingPointError)


def _pass() -> None:
  """Gives nothing up."""


class _Session:
  """One attempt at a run: the state, the logs, and what is still in flight."""

  def __init__(
    self,
    run: Run,
    workdir: Workdir,
    checkpoints: Checkpoints,
    preemption: Preemption,
    clock: Goodput,
    profiler: Profiler,
  ):
    self.run, self.workdir, self.checkpoints = run, workdir, checkpoints
    self.preemption, self.clock, self.profiler = preemption, clock, profiler
    self.programs = CompiledRun(run)
    with progress.phase("looking for a checkpoint"):
      restored = checkpoints.restore_latest(run.abstract_state())
    start = None if restored is None else restored[0]
    self.clock.resume(start or 0)
    self.log = MetricLog(
      workdir,
      steps=run.steps,
      start=start or 0,
      log_every=run.intervals.log_steps,
      tensorboard=run.tensorboard,
      measure=Utilization(minimum_flops(run), list(run.mesh.devices.flat)).measure,
    )
    # Evaluations beyond the checkpoint are made again; those of a run without one, too.
    self.evaluations = JsonlLog(
      workdir / files.EVALUATIONS,
      last_step=-1 if start is None else start,
      writes=workdir.writes,
    )
    processes.wait("logs are cut back")
    self.pending: tuple[int, Any] | None = None
    if restored is None:
      self.tokens = 0
      self.state = self._first_state()
    else:
      _, self.state, meta = restored
      self.tokens = meta["tokens"]
      _LOG.info("resumed from step %d of %d", start, run.steps)
    self.step = start or 0
    self.saved_step, self.saved_time = start, time.monotonic()
    self.last_time = time.monotonic()

  def _first_state(self) -> TrainState:
    with progress.phase("copying the student to the devices"):
      student = self.run.place_student()
    state = self.programs.fill(student)
    self.evaluate(0, state)
    results.samples_before(self.programs, self.workdir, state)
    return state

  def evaluate(self, step: int, state: TrainState, *, check: Callable[[], None] = _pass) -> None:
    """Appends one evaluation; `check`, asked before each batch, may raise to give it up."""
    started = time.monotonic()
    with self.clock.section("evaluation"):
      result = self.programs.evaluate(state, check)
    progress = None
    if self.run.method.reads_progress:
      # The progress of the step made last, as in its metrics; see `Run.context_after`.
      progress = float(self.run.progress(max(step - 1, 0)))
    record = {"step": step, "seconds": self.clock.seconds(), "curriculum_progress": progress}
    self.evaluations.append(record | result)
    self.log.write_evaluation(step, result)
    student = result["student"]
    _LOG.info(
      "held-out at step %d: forward KL %s, perplexity %s, agreement %s (%.1f s)",
      *(step, shown(student["forward_kl"], ".4f"), shown(student["perplexity"], ".2f")),
      shown(student["agreement"], ".1%"),
      time.monotonic() - started,
    )

  def evaluation(self) -> dict[str, Any] | None:
    """The record of the present step's evaluation, if it was made."""
    last = self.evaluations.last
    return last if last and last["step"] == self.step else None

  def flush(self) -> None:
    """Fetches and writes the metrics of the step in flight.

    Raises:
      FloatingPointError: that step was one too many in a row that was skipped.
    """
    if self.pending is None:
      return
    step, metrics = self.pending
    self.pending = None
    values = averages(jax.device_get(metrics))
    now = time.monotonic()
    if not values["skipped"]:
      self.tokens += int(values["tokens"])
    logged = self.log.write(
      *(step, values),
      epoch=step * self.run.batch_size / self.run.rows.train_size,
      tokens=self.tokens,
      seconds=now - self.last_time,
    )
    self.last_time = now
    if logged:
      self.clock.note(step)
    if values["skipped"]:
      note_skipped(self.run, self.workdir, step, values, saved_step=self.saved_step)

  def due(self, every_steps: int) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return bool(every_steps) and self.step % every_steps == 0

  def save_is_due(self) -> bool:
    """By steps, by time, or because it is the end."""
    if self.due(self.run.intervals.save_steps) or self.step == self.run.steps:
      return True
    seconds = self.run.intervals.save_seconds
    by_time = bool(seconds) and time.monotonic() - self.saved_time >= seconds
    # A save that failed is tried again.
    by_time |= self.checkpoints.check()
    if not processes.is_multiprocess():
      return by_time
    # Clocks differ: the processes compare theirs, which takes a moment, once in a while.
    return self.due(self.run.intervals.log_steps) and processes.any_process(by_time)

  def save(self) -> None:
    """Starts writing a checkpoint; what it needs in the logs is there already."""
    with self.clock.section("saving"):
      self.log.sync()
      self.evaluations.sync()
      evaluation = self.evaluation()
      kl = evaluation["student"]["forward_kl"] if evaluation else None
      metrics = None if kl is None else {"forward_kl": kl}
      self.checkpoints.save(self.step, self.state, {"tokens": self.tokens}, metrics)
    self.clock.saved(self.step)
    self.saved_step, self.saved_time = self.step, time.monotonic()

  def stop(self) -> None:
    """Ends the run before its time, with everything saved.

    Raises:
      Preempted: always.
    """
    self.flush()
    if self.step and self.saved_step != self.step:
      self.save()
    self._wait_until_saved()
    if self.step:
      self.clock.note(self.step)
    _LOG.info("saved step %d of %d; run the same command to resume", self.step, self.run.steps)
    raise Preempted

  def _wait_until_saved(self) -> None:
    with self.clock.section("saving"), progress.phase("saving the checkpoint"):
      self.checkpoints.wait()

  def train(self) -> None:
    """Runs the steps that are left.

    Raises:
      Preempted: the run was asked to end.
    """
    if self.step == self.run.steps:
      return
    # All that is compiled, is now: a compilation cannot be broken off to save.
    with self.clock.section("compile"):
      program = self.programs.compile(self.state)
    with self.preemption.between_steps():
      try:
        with self.clock.section("step"), self.log.shown():
          self._steps(program)
      except Interrupted:
        self.stop()
      self._wait_until_saved()

  def _steps(self, program: Any) -> None:
    if self.due(self.run.intervals.evaluate_steps) and self.evaluation() is None:
      # The attempt before was ended in the middle of it.
      self.evaluate(self.step, self.state, check=self.preemption.check)
    batches = self.programs.train_batches(self.step)
    self.last_time = time.monotonic()
    while self.step < self.run.steps:
      self.preemption.check()
      with self.clock.section("data"):
        batch = next(batches)
      with jax.transfer_guard("disallow"):
        arguments = (self.state, self.programs.teacher_params, batch)
        self.state, metrics = self.profiler.call(self.step + 1, program, *arguments)
      # One step late: the device works on this step while the host reads the one before.
      self.flush()
      self.step += 1
      self.pending = (self.step, metrics)
      evaluate, save = self.due(self.run.intervals.evaluate_steps), self.save_is_due()
      if evaluate or save:
        self.flush()
        if evaluate and self.step < self.run.steps:
          self.evaluate(self.step, self.state, check=self.preemption.check)
        if save:
          self.save()
        self.last_time = time.monotonic()

  def finish(self) -> dict[str, Any]:
    """Evaluates the trained student and writes the results."""
    if self.evaluation() is None:
      self.evaluate(self.run.steps, self.state)
    self.evaluations.sync()
    with self.clock.section("finish"):
      self.clock.note(self.step)
      summary = results.finish(
        *(self.programs, self.workdir, self.state),
        tokens=self.tokens,
        seconds=self.clock.sections,
      )
    self.clock.note(self.step)
    return summary


def train(
  run: Run,
  workdir: Workdir,
  preemption: Preemption | None = None,
  *,
  started: float | None = None,
  watchdog: Watchdog | None = None,
) -> dict[str, Any]:
  """Trains or resumes a run to its end and writes its results.

  Resuming: (1) the latest whole checkpoint, (2) logs cut back to its step, (3) the data position,
  which is the step.

  Args:
    run: from `build`.
    workdir: open, its config stored.
    preemption: says when to end early; None: never.
    started: `time.monotonic()` when the process began; now if None.
    watchdog: that watches already; None: one of the run's limits.

  Returns:
    The summary.

  Raises:
    FloatingPointError: too many steps in a row were skipped.
    Preempted: the run was asked to end before its last step; it is saved.
  """
  process = jax.process_index()
  with (
    contextlib.nullcontext(watchdog) if watchdog else Watchdog(run.limits) as watching,
    Profiler(workdir / files.PROFILE, run.profile, process=process) as profiler,
  ):
    watching.process = process
    clock = Goodput(workdir, started=started, entered=watching.enter)
    summary = _train(run, workdir, preemption or Preemption(), clock, profiler)
  if not workdir.writes:
    return summary
  before, after = summary["student_before"], summary["student_after"]
  if after["forward_kl"] is None:
    _LOG.warning(
      "the trained student's held-out forward KL is not finite: it is null in the files, and this "
      "student is of no use; a lower optimizer.learning_rate may train one that is"
    )
  kl, perplexity = (
    [shown(model[key], form) for model in (before, after, summary["teacher"])]
    for key, form in (("forward_kl", ".4f"), ("perplexity", ".2f"))
  )
  _LOG.info(
    "done: held-out forward KL %s -> %s, perplexity %s -> %s (teacher %s)", *kl[:2], *perplexity
  )
  # The summary and the report give the same goodput.
  _LOG.info(describe(summary["goodput"]))
  return summary


def _train(
  run: Run, workdir: Workdir, preemption: Preemption, clock: Goodput, profiler: Profiler
) -> dict[str, Any]:
  checkpoints = Checkpoints(workdir / files.CHECKPOINTS, keep=run.keep, keep_best=run.keep_best)
  try:
    session = _Session(run, workdir, checkpoints, preemption, clock, profiler)
    try:
      session.train()
      summary = session.finish()
    finally:
      session.log.close()
  except Exception as error:
    # Of trouble that it has alone a process tells the others by ending, not by waiting for them.
    if not processes.is_multiprocess() or isinstance(error, _TOGETHER):
      checkpoints.close()
    raise
  checkpoints.close()
  return summary
