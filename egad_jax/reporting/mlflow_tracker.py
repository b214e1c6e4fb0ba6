"""A run in MLflow; server, experiment and name come from its own environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from egad_jax.reporting.trackers import TrackedRun, finite

# The tag by which the run is found again.
_TAG = "egad_jax.run_id"
# Numbers that every record and every evaluation has, of which the server is asked for the steps.
_OF_STEPS, _OF_EVALUATIONS = "epoch", "held_out/agreement"


class MlflowTracker:
  """A `Tracker` that writes one run of the package mlflow, which the first start imports."""

  def start(self, run: TrackedRun) -> None:
    """Makes the run, or goes on with the run of the experiment that has its id as a tag."""
    import mlflow

    self._mlflow = mlflow
    found = mlflow.search_runs(
      filter_string=f"tags.`{_TAG}` = '{run.run_id}'", max_results=1, output_format="list"
    )
    if found:
      self._id = mlflow.start_run(run_id=found[0].info.run_id).info.run_id
    else:
      self._id = mlflow.start_run(tags={_TAG: run.run_id}).info.run_id
      # A parameter cannot be changed, so that a changed config is not sent again.
      mlflow.log_params({**run.config, **run.facts, "workdir": run.workdir})
    self._logged = self._last(_OF_STEPS) if found else -1
    self._evaluated = self._last(_OF_EVALUATIONS) if found else -1

  def _last(self, key: str) -> int:
    """The last step that the server has of a metric; -1 for none."""
    history = self._mlflow.MlflowClient().get_metric_history(self._id, key)
    return max((metric.step for metric in history), default=-1)

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs a step, unless an earlier start of the run has."""
    if step > self._logged:
      self._mlflow.log_metrics(dict(metrics), step=step, run_id=self._id)

  def evaluation(self, step: int, values: Mapping[str, float]) -> None:
    """Logs an evaluation, unless an earlier start of the run has."""
    if step > self._evaluated:
      self._mlflow.log_metrics(dict(values), step=step, run_id=self._id)

  def finish(self, summary: Mapping[str, Any] | None, report: str | None) -> None:
    """Adds the summary and the report, and ends the run; without them it counts as killed."""
    try:
      if summary is not None:
        numbers = {f"summary/{key}": value for key, value in finite(summary).items()}
        self._mlflow.log_metrics(numbers, step=int(summary["steps"]), run_id=self._id)
      if report is not None:
        self._mlflow.log_text(epath.Path(report).read_text(), "report.html", run_id=self._id)
    finally:
      self._mlflow.end_run("KILLED" if summary is None else "FINISHED")
