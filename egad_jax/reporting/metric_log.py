"""Logs a run's metrics to metrics.jsonl, the trackers and the terminal."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from egad_jax import progress
from egad_jax.durability import workdir as files
from egad_jax.durability.jsonl_log import JsonlLog
from egad_jax.durability.workdir import Workdir
from egad_jax.reporting.trackers import Trackers

_LOG = logging.getLogger(__name__)

# Keys from the train step that every line of metrics.jsonl has; null where they do not apply.
# A method's own metrics and the count of skipped steps follow them.
STEP_KEYS = (
  "loss",
  "distillation_loss",
  "feature_loss",
  "cross_entropy",
  "teacher_entropy",
  "student_entropy",
  "temperature_mean",
  "temperature_min",
  "temperature_max",
  "curriculum_progress",
  "weight_mean",
  "hard_fraction",
  "hard_overflow",
  "grad_norm",
  "learning_rate",
)
_NOT_LOGGED = ("tokens", "finite", "skipped_in_a_row", "loss_limit", "grad_norm_limit")


def averages(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
  """The means of a step's (total, count) pairs of scalars, on the host; 0 counts as 1."""
  return {name: float(total) / max(float(count), 1.0) for name, (total, count) in metrics.items()}


def shown(value: float | None, form: str) -> str:
  """Formats a number; "n/a" if it is not finite, or None since it was not measured.

  >>> shown(2.5, ".2f"), shown(None, ".2f"), shown(float("inf"), ".2f")
  ('2.50', 'n/a', 'n/a')
  """
  return "n/a" if value is None or not math.isfinite(value) else format(value, form)


class MetricLog:
  """Writes each logged step once, in order, to metrics.jsonl, the trackers and the terminal."""

  def __init__(
    self,
    workdir: Workdir,
    *,
    steps: int,
    start: int,
    log_every: int,
    trackers: Trackers,
    measure: Callable[[float], Mapping[str, Any]],
    tells: bool = True,
  ):
    """Opens the logs; lines of steps after `start`, from an earlier attempt, are cut off.

    Args:
      workdir: the open workdir whose metrics.jsonl is written.
      steps: number of steps of the whole run.
      start: step from which the run resumes; 0 for a new run.
      log_every: steps between logged lines; the last step is always logged.
      trackers: the trackers that get each line and each evaluation; `close` ends them.
      measure: takes the mean seconds of a step and returns further entries of the line, as
        `Utilization.measure` does.
      tells: whether logged steps go to the terminal too.
    """
    self._lines = JsonlLog(workdir / files.METRICS, last_step=start, writes=workdir.writes)
    self._steps, self._log_every, self._measure = steps, log_every, measure
    self._workdir, self._trackers, self._tells = workdir, trackers, tells
    self._phase = progress.Phase()
    self._step = self._since = start
    self._seconds, self._tokens = 0.0, 0.0

  @contextlib.contextmanager
  def shown(self) -> Iterator[None]:
    """Shows the progress of the steps made in this context."""
    phase = progress.phase("training", self._steps, completed=self._step, is_told=False)
    with phase as self._phase:
      yield
    self._phase = progress.Phase()

  def write(
    self, step: int, values: Mapping[str, float], *, epoch: float, tokens: int, seconds: float
  ) -> bool:
    """Takes the metrics of one step, and logs a line if one is due.

    Args:
      step: number of this step, from 1; skipped ones count.
      values: metrics of the step, as `averages` returns them.
      epoch: passes over the train rows so far.
      tokens: target tokens trained on since the start of the run.
      seconds: seconds that the step took, with the wait for its batch.

    Returns:
      Whether the step was logged.
    """
    self._seconds += seconds
    self._tokens += 0.0 if values.get("skipped") else values["tokens"]
    rate = self._tokens / self._seconds
    self._phase.update(step - self._step, f"loss {values['loss']:.3f}  {rate:.0f} tokens/s")
    self._step = step
    if step % self._log_every and step != self._steps:
      return False
    step_seconds = self._seconds / (step - self._since)
    record: dict[str, Any] = {"step": step, "epoch": epoch}
    record |= {key: values.get(key) for key in STEP_KEYS}
    record |= {"tokens": tokens, "tokens_per_second": rate, "step_seconds": step_seconds}
    record |= self._measure(step_seconds)
    record |= {k: v for k, v in values.items() if k not in record and k not in _NOT_LOGGED}
    self._lines.append(record)
    self._trackers.log(step, {key: value for key, value in record.items() if key != "step"})
    if self._tells and not self._phase.is_bar:
      left = (self._steps - step) * step_seconds
      _LOG.info(
        "step %d/%d  loss %.4f  distillation %.4f  entropy %.3f  T %.3f  %.0f tokens/s  ETA %s",
        step,
        self._steps,
        values["loss"],
        values["distillation_loss"],
        values["teacher_entropy"],
        values["temperature_mean"],
        rate,
        f"{int(left // 60)}:{int(left % 60):02d}",
      )
    self._since, self._seconds, self._tokens = step, 0.0, 0.0
    return True

  def write_evaluation(self, step: int, result: Mapping[str, Any]) -> None:
    """Sends the student's held-out metrics to the trackers, under "held_out/"."""
    values = {f"held_out/{key}": value for key, value in result["student"].items()}
    self._trackers.evaluation(step, values)

  def sync(self) -> None:
    """Writes the waiting lines of metrics.jsonl."""
    self._lines.sync()

  def close(self, summary: Mapping[str, Any] | None = None) -> None:
    """Writes all that waits and ends the trackers.

    Args:
      summary: the contents of summary.json; None if the run ends before its last step.
    """
    self.sync()
    if summary is None:
      self._trackers.close(None, None)
    else:
      self._trackers.close(files.flat(summary), str(self._workdir / files.REPORT))
