"""Trains each method of the table from the tiny config, and resumes it mid-way: `make methods`.

Prints, for every method, its own held-out objective of the student before and after training (both
at the final state, since the objective moves with the state), the same for the held-out forward
KL, and whether a run that lost its last half and was started again ended in the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.table

from configs import tiny
from egad_jax import from_config
from egad_jax.durability.workdir import Workdir
from egad_jax.methods import METHODS
from egad_jax.training import loop
from egad_jax.training.compiled_run import CompiledRun

# What a method needs besides its name: the rest is the tiny config.
OVERRIDES: dict[str, dict[str, Any]] = {
  "x_token": {"student.tokenizer": "train:384"},
}
# Wall-clock numbers differ from run to run.
TIMES = {"tokens_per_second", "step_seconds"}


class Result(NamedTuple):
  """What training a method came to; objectives in nats per token, at the final state."""

  method: str
  objective_before: float
  objective_after: float
  forward_kl_before: float
  forward_kl_after: float
  changed_state: bool
  seconds: float


def config_of(
  method: str, steps: int, cache: pathlib.Path, changes: Mapping[str, Any] | None = None
) -> Any:
  """The tiny config with a method, one checkpoint mid-way and one at the end."""
  config = tiny.get_config()
  config.method = method
  config.steps = steps
  config.checkpoint.every_steps = steps // 2
  config.checkpoint.every_seconds = 0.0
  config.eval.every_steps = 0
  config.eval.sample_tokens = 0
  config.trackers = ()
  config.data.cache = str(cache / "data")
  config.compilation_cache = str(cache / "programs")
  config.update_from_flattened_dict(OVERRIDES.get(method, {}) | dict(changes or {}))
  return config


def _train(run: Any, options: loop.LoopOptions, directory: pathlib.Path) -> dict[str, Any]:
  with Workdir(directory) as workdir:
    workdir.store_config({})
    return loop.train(run, options, workdir)


def _state(run: Any, directory: pathlib.Path) -> Any:
  checkpoints = loop.Checkpoints(directory / "checkpoints")
  try:
    step, state, _ = checkpoints.restore_latest(run.abstract_state())
    assert step == run.optimization.steps
    return state
  finally:
    checkpoints.close()


def _metrics(directory: pathlib.Path) -> list[dict[str, Any]]:
  lines = (directory / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in lines]


def _cut_in_half(directory: pathlib.Path, steps: int) -> None:
  """Leaves of a finished run what one killed right after its checkpoint mid-way has."""
  for path in sorted((directory / "checkpoints" / str(steps)).rglob("*"), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  (directory / "checkpoints" / str(steps)).rmdir()
  for name in ("summary.json", "report.html"):
    (directory / name).unlink()


def train_and_resume(
  method: str,
  steps: int,
  root: pathlib.Path,
  *,
  changes: Mapping[str, Any] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Result:
  """Trains a method, then its second half again from the checkpoint, and compares the two.

  Args:
    method: a name of METHODS.
    steps: of the run, even.
    root: directory for the run and what all runs share.
    changes: to the config, by key.
    devices: of the run; None: all.

  Raises:
    AssertionError: the resumed run differs in a bit of its state or a logged number.
  """
  started = time.monotonic()
  directory = root / method
  config = config_of(method, steps, root, changes)
  run = from_config.build(config, directory, devices=devices)
  options = from_config.loop_options(config)
  summary = _train(run, options, directory)
  state, metrics = _state(run, directory), _metrics(directory)
  _cut_in_half(directory, steps)
  _train(run, options, directory)
  again = _state(run, directory)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(again), strict=True
  ):
    np.testing.assert_array_equal(a, b, err_msg=f"{method}{jax.tree_util.keystr(path)}")
  assert _metrics(directory) == metrics, f"{method}: the log of the resumed run differs"
  programs = CompiledRun(run)
  before = programs.fill(run.first_state())
  own = [jax.tree.leaves(s.method_state) for s in (before, state)]
  changed = any(not np.array_equal(a, b) for a, b in zip(*own, strict=True))
  return Result(
    method,
    programs.held_out_loss(before.trainable, state),
    programs.held_out_loss(state.trainable, state),
    summary["student_before"]["forward_kl"],
    summary["student_after"]["forward_kl"],
    changed,
    time.monotonic() - started,
  )


def learns(result: Result) -> bool:
  """Whether training lowered the method's own objective on held-out text."""
  numbers = (result.objective_before, result.objective_after)
  return all(map(math.isfinite, numbers)) and numbers[1] < numbers[0] and result.changed_state


def main() -> int:
  """Trains all methods and prints the table; 1 if one does not learn or resume."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("methods", nargs="*", default=list(METHODS))
  arguments = parser.parse_args()
  table = rich.table.Table(title=f"{arguments.steps} steps of configs/tiny.py")
  for name in ("method", "objective", "forward KL", "resumed bit for bit", "seconds"):
    table.add_column(name, justify="left" if name == "method" else "right")
  failed = []
  with tempfile.TemporaryDirectory() as root:
    for method in arguments.methods:
      result = train_and_resume(method, arguments.steps, pathlib.Path(root))
      if not learns(result):
        failed.append(method)
      table.add_row(
        method,
        f"{result.objective_before:.4f} -> {result.objective_after:.4f}",
        f"{result.forward_kl_before:.4f} -> {result.forward_kl_after:.4f}",
        "yes",
        f"{result.seconds:.0f}",
      )
  rich.console.Console(width=100).print(table)
  if failed:
    print(f"did not lower their objective: {', '.join(failed)}", file=sys.stderr)
  return bool(failed)


if __name__ == "__main__":
  sys.exit(main())
