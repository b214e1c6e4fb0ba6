"""A run in Weights & Biases; project, name and key come from its own environment variables."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from etils import epath

from egad_jax.reporting.trackers import TrackedRun, finite

_LOG = logging.getLogger(__name__)
# Seconds that the client uploads at the end, and once more when the process exits.
_UPLOAD_SECONDS = 20.0
_STEP, _EVALUATION_STEP = "step", "held_out/step"


class WandbTracker:
  """A `Tracker` that writes one run of the package wandb, which the first start imports."""

  def start(self, run: TrackedRun) -> None:
    """Makes the run, or goes on with it where the server knows its id."""
    import wandb

    # Silent, so that the client neither draws into the progress bar nor asks for a key; without
    # capture of the console, which has a reader of its own here.
    settings = wandb.Settings(silent=True, console="off", finish_timeout=_UPLOAD_SECONDS)
    wandb.setup(settings=settings)
    self._html = wandb.Html
    self._run = wandb.init(
      id=run.run_id,
      resume="allow",
      config={**run.config, **run.facts, "workdir": run.workdir},
      allow_val_change=True,
      settings=settings,
    )
    # Axes of ours: the client's own step would refuse an evaluation of a step it has passed. Not
    # synchronized, or an evaluation would be given a step of the other axis.
    for names, axis in (("*", _STEP), ("held_out/*", _EVALUATION_STEP)):
      self._run.define_metric(names, step_metric=axis, step_sync=False)
    self._logged = self._last(_STEP)
    self._evaluated = self._last(_EVALUATION_STEP)
    if getattr(self._run, "offline", False):
      _LOG.info("tracker wandb writes offline, to %s", self._run.dir)
    else:
      _LOG.info("tracker wandb: %s", self._run.url)

  def _last(self, key: str) -> int:
    """The last step that the server has; -1 for none, as always offline."""
    found = self._run.summary.get(key)
    return -1 if found is None else int(found)

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Logs a step, unless an earlier start of the run has."""
    if step > self._logged:
      self._run.log({_STEP: step, **metrics})

  def evaluation(self, step: int, values: Mapping[str, float]) -> None:
    """Logs an evaluation, unless an earlier start of the run has."""
    if step > self._evaluated:
      self._run.log({_EVALUATION_STEP: step, **values})

  def finish(self, summary: Mapping[str, Any] | None, report: str | None) -> None:
    """Adds the summary and the report, and ends the run; without them it counts as failed."""
    if summary is not None:
      numbers = finite(summary)
      self._run.summary.update({f"summary/{key}": value for key, value in numbers.items()})
    if report is not None:
      self._run.log({"report": self._html(epath.Path(report).read_text(), inject=False)})
    self._run.finish(exit_code=1 if summary is None else 0)
