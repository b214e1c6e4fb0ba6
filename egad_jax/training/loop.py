"""The train loop: keeps the devices busy and the run's files consistent with its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from egad_jax import processes, progress
from egad_jax.data.batches import AnyBatch
from egad_jax.durability import workdir as files
from egad_jax.durability.checkpoints import CheckpointError, Checkpoints
from egad_jax.durability.jsonl_log import JsonlLog
from egad_jax.durability.preemption import Interrupted, Preempted, Preemption
from egad_jax.durability.watchdog import Limits, Watchdog
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError
from egad_jax.reporting.metric_log import MetricLog, averages, shown
from egad_jax.reporting.trackers import TrackedRun, Tracker, Trackers, run_id
from egad_jax.training import overview, results
from egad_jax.training.bad_batch import note_skipped
from egad_jax.training.compiled_run import CompiledRun
from egad_jax.training.experiment import Experiment
from egad_jax.training.goodput import Goodput, describe
from egad_jax.training.profiling import Profiler, Window
from egad_jax.training.state import TrainState
from egad_jax.training.utilization import Utilization, minimum_flops

_LOG = logging.getLogger(__name__)
# Exceptions that every process of a run raises at the same point of the program.
_TOGETHER = (InputError, Preempted, CheckpointError, FloatingPointError)


def _pass() -> None:
  """The check of an evaluation that is always completed."""


@dataclasses.dataclass(frozen=True)
class LoopOptions:
  """Options for everything around the steps; none changes the numbers of the training.

  Attributes:
    log_steps: steps between two lines of metrics.jsonl; positive.
    save_steps: steps between two checkpoints; 0 to save only by time and at the end.
    save_seconds: seconds between two checkpoints; 0 to save only by steps and at the end.
    evaluate_steps: steps between two evaluations; 0 for none but the first and the last.
    keep: number of latest checkpoints to keep; positive.
    keep_best: whether to keep the checkpoint of lowest held-out forward KL besides.
    max_skipped: number of skipped steps in a row that ends the run; positive.
    trackers: name -> function that makes the tracker; process 0 alone calls it.
    limits: seconds without progress after which the process is taken to hang.
    profile: the steps to trace.
  """

  log_steps: int
  save_steps: int
  save_seconds: float
  evaluate_steps: int
  keep: int
  keep_best: bool
  max_skipped: int
  trackers: Mapping[str, Callable[[], Tracker]]
  limits: Limits
  profile: Window

  def disk_bytes(self, experiment: Experiment) -> int:
    """Approximate bytes of the kept checkpoints, one being written, and the export."""
    state = experiment.abstract_state()
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return (self.keep + self.keep_best + 1) * size(state) + size(state.trainable["student"])


class _Session:
  """One start of a run: its state, its logs, and the step whose metrics are in flight."""

  def __init__(
    self,
    experiment: Experiment,
    options: LoopOptions,
    workdir: Workdir,
    checkpoints: Checkpoints,
    preemption: Preemption,
    clock: Goodput,
    profiler: Profiler,
  ):
    self.experiment, self.options = experiment, options
    self.num_steps = experiment.optimization.steps
    self.workdir, self.checkpoints = workdir, checkpoints
    self.preemption, self.clock, self.profiler = preemption, clock, profiler
    self.compiled = CompiledRun(experiment)
    with progress.phase("looking for a checkpoint"):
      restored = checkpoints.restore_latest(experiment.abstract_state())
    start = None if restored is None else restored[0]
    self.clock.resume(start or 0)
    self.log = MetricLog(
      workdir,
      steps=experiment.optimization.steps,
      start=start or 0,
      log_every=options.log_steps,
      trackers=self._trackers(start or 0),
      measure=Utilization(minimum_flops(experiment), list(experiment.mesh.devices.flat)).measure,
    )
    # Evaluations beyond the checkpoint are made again; without a checkpoint, all of them are.
    self.evaluations = JsonlLog(
      workdir / files.EVALUATIONS,
      last_step=-1 if start is None else start,
      writes=workdir.writes,
    )
    processes.wait("logs are cut back")
    self.pending: tuple[int, Any, AnyBatch | None] | None = None
    if restored is None:
      self.tokens = 0
      self.state = self._first_state()
    else:
      _, self.state, meta = restored
      self.tokens = meta["tokens"]
      _LOG.info("resumed from step %d of %d", start, experiment.optimization.steps)
    self.step = start or 0
    self.saved_step, self.saved_time = start, time.monotonic()
    self.last_time = time.monotonic()

  def _trackers(self, start: int) -> Trackers:
    if not self.workdir.writes or not self.options.trackers:
      return Trackers({}, None)
    run = TrackedRun(
      run_id=run_id(self.workdir),
      step=start,
      workdir=str(self.workdir.path),
      config=files.flat(self.workdir.read_json(files.CONFIG) or {}),
      facts=overview.facts(self.experiment),
    )
    return Trackers(self.options.trackers, run)

  def _first_state(self) -> TrainState:
    with progress.phase("copying the student to the devices"):
      student = self.experiment.first_state()
    state = self.compiled.fill(student)
    self.evaluate(0, state)
    results.samples_before(self.compiled, self.workdir, state)
    return state

  def evaluate(self, step: int, state: TrainState, *, check: Callable[[], None] = _pass) -> None:
    """Makes and logs one evaluation; `check`, called before each batch, may raise to abandon it."""
    started = time.monotonic()
    with self.clock.section("evaluation"):
      result = self.compiled.evaluate(state, check)
    progress = None
    if self.experiment.method.reads_progress:
      # The progress of the step made last, as in its metrics; see `Experiment.context_after`.
      progress = float(self.experiment.optimization.progress(max(step - 1, 0)))
    record = {"step": step, "seconds": self.clock.seconds(), "curriculum_progress": progress}
    self.evaluations.append(record | result)
    self.log.write_evaluation(step, result)
    student = result["student"]
    _LOG.info(
      "held-out at step %d: forward KL %s, perplexity %s, agreement %s (%.1f s)",
      step,
      shown(student["forward_kl"], ".4f"),
      shown(student["perplexity"], ".2f"),
      shown(student["agreement"], ".1%"),
      time.monotonic() - started,
    )

  def evaluation(self) -> dict[str, Any] | None:
    """The record of the current step's evaluation; None if it was not made."""
    last = self.evaluations.last
    return last if last and last["step"] == self.step else None

  def flush(self) -> None:
    """Fetches and writes the metrics of the step in flight; does nothing if there is none.

    Raises:
      FloatingPointError: `max_skipped` steps in a row were skipped, that step included.
    """
    if self.pending is None:
      return
    step, metrics, batch = self.pending
    self.pending = None
    values = averages(jax.device_get(metrics))
    now = time.monotonic()
    if not values["skipped"]:
      self.tokens += int(values["tokens"])
    logged = self.log.write(
      step,
      values,
      epoch=step * self.experiment.optimization.batch_size / self.experiment.rows.train_size,
      tokens=self.tokens,
      seconds=now - self.last_time,
    )
    self.last_time = now
    if logged:
      self.clock.note(step)
    if values["skipped"]:
      note_skipped(
        self.experiment,
        batch,
        self.workdir,
        step,
        values,
        max_skipped=self.options.max_skipped,
        saved_step=self.saved_step,
      )

  def due(self, every_steps: int) -> bool:
    """Whether the current step is a multiple of `every_steps`; False if that is 0."""
    return bool(every_steps) and self.step % every_steps == 0

  def save_is_due(self) -> bool:
    """Whether a checkpoint is due: by steps, by time, or because this is the last step."""
    if self.due(self.options.save_steps) or self.step == self.num_steps:
      return True
    seconds = self.options.save_seconds
    by_time = bool(seconds) and time.monotonic() - self.saved_time >= seconds
    # A save that failed is tried again.
    by_time |= self.checkpoints.check()
    if not processes.is_multiprocess():
      return by_time
    # Clocks differ, so the processes must agree; that takes a moment and is done at log steps only.
    return self.due(self.options.log_steps) and processes.any_process(by_time)

  def save(self) -> None:
    """Starts writing a checkpoint, after syncing the logs up to its step."""
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
    """Saves everything and ends the run before its last step.

    Raises:
      Preempted: always.
    """
    self.flush()
    if self.step and self.saved_step != self.step:
      self.save()
    self._wait_until_saved()
    if self.step:
      self.clock.note(self.step)
    _LOG.info("saved step %d of %d; run the same command to resume", self.step, self.num_steps)
    raise Preempted

  def _wait_until_saved(self) -> None:
    with self.clock.section("saving"), progress.phase("saving the checkpoint"):
      self.checkpoints.wait()

  def train(self) -> None:
    """Runs the steps that are left.

    Raises:
      Preempted: the run was asked to end.
    """
    if self.step == self.num_steps:
      return
    # Everything is compiled now, because a compilation cannot be interrupted to save.
    with self.clock.section("compile"):
      program = self.compiled.compile(self.state, evaluates=bool(self.options.evaluate_steps))
    with self.preemption.between_steps():
      try:
        with self.clock.section("step"), self.log.shown():
          self._steps(program)
      except Interrupted:
        self.stop()
      self._wait_until_saved()

  def _steps(self, program: Any) -> None:
    if self.due(self.options.evaluate_steps) and self.evaluation() is None:
      # The previous start ended in the middle of this evaluation.
      self.evaluate(self.step, self.state, check=self.preemption.check)
    batches = self.compiled.train_batches(self.step, lambda: self.state)
    self.last_time = time.monotonic()
    while self.step < self.num_steps:
      self.preemption.check()
      with self.clock.section("data"):
        batch = next(batches)
      with jax.transfer_guard("disallow"):
        arguments = (self.state, self.compiled.frozen, batch)
        self.state, metrics = self.profiler.call(self.step + 1, program, *arguments)
      # Metrics are read one step late, so that the devices work on this step meanwhile.
      self.flush()
      self.step += 1
      # A batch made from the state cannot be made again from a later one.
      kept = batch._replace(attached=()) if self.experiment.batch_source.reads_state else None
      self.pending = (self.step, metrics, kept)
      evaluate, save = self.due(self.options.evaluate_steps), self.save_is_due()
      if evaluate or save:
        self.flush()
        if evaluate and self.step < self.num_steps:
          self.evaluate(self.step, self.state, check=self.preemption.check)
        if save:
          self.save()
        self.last_time = time.monotonic()

  def finish(self) -> dict[str, Any]:
    """Evaluates the trained student, writes the results and returns the summary."""
    if self.evaluation() is None:
      self.evaluate(self.num_steps, self.state)
    self.evaluations.sync()
    with self.clock.section("finish"):
      self.clock.note(self.step)
      summary = results.finish(
        self.compiled,
        self.workdir,
        self.state,
        tokens=self.tokens,
        seconds=self.clock.sections,
      )
    self.clock.note(self.step)
    return summary


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
  process = jax.process_index()
  with (
    contextlib.nullcontext(watchdog) if watchdog else Watchdog(options.limits) as watching,
    Profiler(workdir / files.PROFILE, options.profile, process=process) as profiler,
  ):
    watching.process = process
    clock = Goodput(workdir, started=started, entered=watching.enter)
    summary = _train(experiment, options, workdir, preemption or Preemption(), clock, profiler)
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
  experiment: Experiment,
  options: LoopOptions,
  workdir: Workdir,
  preemption: Preemption,
  clock: Goodput,
  profiler: Profiler,
) -> dict[str, Any]:
  checkpoints = Checkpoints(
    workdir / files.CHECKPOINTS, keep=options.keep, keep_best=options.keep_best
  )
  try:
    session = _Session(experiment, options, workdir, checkpoints, preemption, clock, profiler)
    summary = None
    try:
      session.train()
      summary = session.finish()
    finally:
      session.log.close(summary)
  except Exception as error:
    # A process that fails alone tells the others by ending. Closing would wait for them.
    if not processes.is_multiprocess() or isinstance(error, _TOGETHER):
      checkpoints.close()
    raise
  checkpoints.close()
  return summary
