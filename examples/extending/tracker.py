"""A tracker of one's own: each method is called with what a service for metrics would be sent.

A tracker that raises or hangs is dropped with a warning, and the run goes on.

  python -m examples.extending.tracker
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from egad_jax.from_config import Extensions
from egad_jax.reporting.trackers import TrackedRun
from examples.extending.short_run import short_run, show


class Printer:
  """Prints some of the numbers; a `Tracker`."""

  def start(self, run: TrackedRun) -> None:
    """Prints what the run is."""
    print(f"{run.run_id}: {run.facts['teacher']}, {run.config['method']}, from step {run.step}")

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Prints the loss of a logged step."""
    print(f"step {step}: loss {metrics['loss']:.4f}")

  def evaluation(self, step: int, values: Mapping[str, float]) -> None:
    """Prints the held-out perplexity after a step."""
    print(f"step {step}: held-out perplexity {values['held_out/perplexity']:.2f}")

  def finish(self, summary: Mapping[str, Any] | None, report: str | None) -> None:
    """Prints what came of the run."""
    print("stopped" if summary is None else f"{summary['tokens']} tokens, see {report}")


EXTENSIONS = Extensions(trackers={"printer": Printer})

if __name__ == "__main__":
  show(short_run(EXTENSIONS, trackers=("printer",), log_every=1))
