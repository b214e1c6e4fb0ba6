"""One start of a run: its state, its files, and the step whose metrics are in flight."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from egad_jax import processes, progress, sharding
from egad_jax.data.batches import AnyBatch
from egad_jax.durability import workdir as files
from egad_jax.durability.checkpoints import Checkpoints
from egad_jax.durability.jsonl_log import JsonlLog
from egad_jax.durability.watchdog import Limits
from egad_jax.durability.workdir import Workdir
from egad_jax.reporting.metric_log import MetricLog, averages, shown
from egad_jax.reporting.trackers import TrackedRun, Tracker, Trackers, run_id
from egad_jax.training import overview, results
from egad_jax.training.bad_batch import note_skipped
from egad_jax.training.compiled_run import CompiledRun
from egad_jax.training.experiment import Experiment
from egad_jax.training.goodput import Goodput
from egad_jax.training.profiling import Window
from egad_jax.training.state import TrainState
from egad_jax.training.utilization import Utilization, minimum_flops

_LOG = logging.getLogger(__name__)


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


class Session:
  """One start of a run: its state, its logs, and the step whose metrics are in flight.

  The loop tells it what to do and when; several sessions may take their steps in turn.

  Attributes:
    experiment: the experiment being run.
    options: when to log, save and evaluate.
    num_steps: number of steps of the whole run.
    workdir: the run's directory.
    clock: where the time of the run goes.
    compiled: the run's programs.
    log: the log of the steps' metrics.
    name: the student's name among several; "" for a run by itself.
    step: number of steps made so far.
    logged: (step, loss) of the step that was logged last; whoever has told it sets None.
  """

  def __init__(
    self,
    experiment: Experiment,
    options: LoopOptions,
    workdir: Workdir,
    checkpoints: Checkpoints,
    clock: Goodput,
    compiled: CompiledRun,
    *,
    name: str = "",
    on_host: bool = False,
  ):
    """Restores the latest checkpoint and cuts the logs back to it.

    Args:
      experiment: the experiment to run.
      options: when to log, save and evaluate.
      workdir: the run's directory, open, with the config stored in it.
      checkpoints: the checkpoints of the workdir.
      clock: where the time of the run goes.
      compiled: the run's programs.
      name: the student's name among several; "" for a run by itself.
      on_host: whether the state stays in host memory between two steps.
    """
    self.experiment, self.options, self.name = experiment, options, name
    self.num_steps = experiment.optimization.steps
    self.workdir, self._checkpoints, self.clock = workdir, checkpoints, clock
    self.compiled, self._on_host = compiled, on_host
    self._label = f"{name}: " if name else ""
    with progress.phase("looking for a checkpoint"):
      restored = checkpoints.restore_latest(experiment.abstract_state())
    start = None if restored is None else restored[0]
    self.clock.resume(start or 0)
    self.log = MetricLog(
      workdir,
      steps=self.num_steps,
      start=start or 0,
      log_every=options.log_steps,
      trackers=self._trackers(start or 0),
      measure=Utilization(minimum_flops(experiment), list(experiment.mesh.devices.flat)).measure,
      tells=not name,
    )
    # Evaluations beyond the checkpoint are made again; without a checkpoint, all of them are.
    self.evaluations = JsonlLog(
      workdir / files.EVALUATIONS,
      last_step=-1 if start is None else start,
      writes=workdir.writes,
    )
    processes.wait("logs are cut back")
    self._state: TrainState | None = None
    self._program: Any = None
    self._pending: tuple[int, Any, AnyBatch | None] | None = None
    self._tokens = 0
    if restored is not None:
      _, state, meta = restored
      self.keep(state)
      self._tokens = meta["tokens"]
      _LOG.info("%sresumed from step %d of %d", self._label, start, self.num_steps)
    self.step = start or 0
    self._saved_step, self._saved_time = start, time.monotonic()
    self._last_time = time.monotonic()
    self.logged: tuple[int, float] | None = None

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

  @property
  def is_new(self) -> bool:
    """Whether there is no state yet: no checkpoint was found, and `keep` was not called."""
    return self._state is None

  def keep(self, state: TrainState) -> None:
    """Keeps a state until the next step, in host memory if this session is to."""
    if self._on_host:
      shardings = jax.tree.map(lambda x: x.sharding.with_memory_kind(sharding.HOST), state)
      # Until the copy is made, the devices hold this state, and must not be given another one.
      state = jax.block_until_ready(jax.device_put(state, shardings))
    self._state = state

  def state(self, *, for_evaluation: bool = False) -> TrainState:
    """The state after the steps made so far, on the devices.

    Args:
      for_evaluation: whether the optimizer's state may be left out; it is () then, if the rest has
        to be copied.
    """
    assert self._state is not None
    if not self._on_host:
      return self._state
    state = self._state._replace(opt_state=()) if for_evaluation else self._state
    shardings = jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), state)
    return jax.device_put(state, shardings)

  def compile(self) -> None:
    """Compiles what the steps need, because a compilation cannot be interrupted to save."""
    with self.clock.section("compile"):
      self._program = self.compiled.compile(
        self.state(), evaluates=bool(self.options.evaluate_steps)
      )

  def start_step(self, batch: AnyBatch) -> Any:
    """Starts the next step on the devices and returns its metrics, which are under way."""
    with jax.transfer_guard("disallow"):
      state, metrics = self._program(self.state(), self.compiled.frozen, batch)
      self.keep(state)
    return metrics

  def end_step(self, batch: AnyBatch, metrics: Any) -> None:
    """Writes the metrics of the step before; those of the step just started are in flight.

    Metrics are read one step late, so that the devices work on this step meanwhile.

    Raises:
      FloatingPointError: too many steps in a row were skipped, up to the step before.
    """
    with self.clock.section("step"):  # Each student's step has the watchdog's time of its own.
      self.flush()
    self.step += 1
    # A batch made from the state cannot be made again from a later one.
    kept = batch._replace(attached=()) if self.experiment.batch_source.reads_state else None
    self._pending = (self.step, metrics, kept)

  def restart_clock(self) -> None:
    """Says that the time until now belongs to no step."""
    self._last_time = time.monotonic()

  def note_evaluation(self, result: dict[str, Any], seconds: float) -> None:
    """Logs the evaluation of the present state, which took so many seconds."""
    progress = None
    if self.experiment.method.reads_progress:
      # The progress of the step made last, as in its metrics; see `Experiment.context_after`.
      progress = float(self.experiment.optimization.progress(max(self.step - 1, 0)))
    record = {"step": self.step, "seconds": self.clock.seconds(), "curriculum_progress": progress}
    self.evaluations.append(record | result)
    self.log.write_evaluation(self.step, result)
    student = result["student"]
    _LOG.info(
      "%sheld-out at step %d: forward KL %s, perplexity %s, agreement %s (%.1f s)",
      self._label,
      self.step,
      shown(student["forward_kl"], ".4f"),
      shown(student["perplexity"], ".2f"),
      shown(student["agreement"], ".1%"),
      seconds,
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
    if self._pending is None:
      return
    step, metrics, batch = self._pending
    self._pending = None
    values = averages(jax.device_get(metrics))
    now = time.monotonic()
    if not values["skipped"]:
      self._tokens += int(values["tokens"])
    logged = self.log.write(
      step,
      values,
      epoch=step * self.experiment.optimization.batch_size / self.experiment.rows.train_size,
      tokens=self._tokens,
      seconds=now - self._last_time,
    )
    self._last_time = now
    if logged:
      self.logged = (step, values["loss"])
      self.clock.note(step)
    if values["skipped"]:
      note_skipped(
        self.experiment,
        batch,
        self.workdir,
        step,
        values,
        max_skipped=self.options.max_skipped,
        saved_step=self._saved_step,
      )

  def due(self, every_steps: int) -> bool:
    """Whether the current step is a multiple of `every_steps`; False if that is 0."""
    return bool(every_steps) and self.step % every_steps == 0

  def save_is_due(self) -> bool:
    """Whether a checkpoint is due: by steps, by time, or because this is the last step."""
    if self.due(self.options.save_steps) or self.step == self.num_steps:
      return True
    seconds = self.options.save_seconds
    by_time = bool(seconds) and time.monotonic() - self._saved_time >= seconds
    # A save that failed is tried again.
    by_time |= self._checkpoints.check()
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
      self._checkpoints.save(self.step, self.state(), {"tokens": self._tokens}, metrics)
    self.clock.saved(self.step)
    self._saved_step, self._saved_time = self.step, time.monotonic()

  def stop(self) -> None:
    """Saves everything before the last step.

    Raises:
      FloatingPointError: too many steps in a row were skipped, up to this one.
    """
    self.flush()
    if self.step and self._saved_step != self.step:
      self.save()

  def wait_until_saved(self) -> None:
    """Waits until the last checkpoint is on the disk.

    Raises:
      CheckpointError: it could not be written.
    """
    with self.clock.section("saving"), progress.phase("saving the checkpoint"):
      self._checkpoints.wait()

  def note_stop(self) -> None:
    """Says that the run ends before its last step, which is saved."""
    if self.step:
      self.clock.note(self.step)
    _LOG.info(
      "%ssaved step %d of %d; run the same command to resume",
      self._label,
      self.step,
      self.num_steps,
    )

  def finish(self) -> dict[str, Any]:
    """Writes the results of the evaluated last step and returns the summary."""
    self.evaluations.sync()
    with self.clock.section("finish"):
      self.clock.note(self.step)
      summary = results.finish(
        self.compiled,
        self.workdir,
        self.state(),
        tokens=self._tokens,
        seconds=self.clock.sections,
      )
    self.clock.note(self.step)
    return summary

  def close(self, summary: dict[str, Any] | None) -> None:
    """Ends the logs; `summary` is None if the run ends before its last step."""
    self.log.close(summary)
