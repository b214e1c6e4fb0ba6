"""What asynchronous saving and watching cost a run: python -m benchmarks.overhead [--rounds=12]

A round begins a save and takes steps. Those while the checkpoint is written are compared with the
later ones, which are bare and watched in turn (clock, watchdog, profiler and utilization around the
step, a line of metrics after it): neighbours, because a machine's speed drifts by more in a minute
than either costs. On a CPU, where writing takes time from computing that it would not take from an
accelerator.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags
from etils import epath

from benchmarks.markdown import table
from egad_jax.errors import InputError
from launch import command_line

ROUNDS = flags.DEFINE_integer("rounds", 12, "How many saves.", 1)
STEPS = flags.DEFINE_integer("steps", 20, "Steps of a round, from one save to the next.", 4)
ROWS = flags.DEFINE_integer("rows", 8, "Rows of 64 tokens of a step.", 1)


def main() -> None:
  """Prints the table."""
  import jax

  from benchmarks.step_measured import Timed, small_config
  from egad_jax import from_config
  from egad_jax.durability.checkpoints import Checkpoints
  from egad_jax.durability.watchdog import Limits, Watchdog
  from egad_jax.durability.workdir import Workdir
  from egad_jax.reporting.events import TensorBoard
  from egad_jax.reporting.metric_log import MetricLog
  from egad_jax.reporting.trackers import TrackedRun, Trackers
  from egad_jax.training.goodput import Goodput
  from egad_jax.training.profiling import Profiler, Window
  from egad_jax.training.state import Frozen
  from egad_jax.training.utilization import Utilization, minimum_flops

  config = small_config()
  config.batch_size = ROWS.value
  experiment = from_config.plan_run(config, jax.devices()[:1])
  timed = Timed(experiment, Frozen(experiment.teacher.place().params, {}))
  timed.step()
  size = sum(x.nbytes for x in jax.tree.leaves(timed.state))

  with tempfile.TemporaryDirectory(dir=pathlib.Path.cwd()) as scratch, Workdir(scratch) as workdir:
    checkpoints = Checkpoints(epath.Path(scratch) / "checkpoints", keep=2)
    measure = Utilization(minimum_flops(experiment), jax.devices()[:1]).measure
    tracked = TrackedRun(run_id="0", step=0, workdir=scratch, config={}, facts={})
    trackers = Trackers({"tensorboard": TensorBoard}, tracked)
    log = MetricLog(workdir, steps=10**6, start=0, log_every=1, trackers=trackers, measure=measure)
    watchdog, profiler = Watchdog(Limits(600.0, 3600.0)), Profiler(workdir / "p", Window(0, 5))
    clock = Goodput(workdir, entered=watchdog.enter)

    def watched(step: int) -> None:
      with clock.section("step"):
        with clock.section("data"):
          pass
        seconds = profiler.call(step, timed.step)
        log.write(step, timed.values(), epoch=0.0, tokens=0, seconds=seconds)
        clock.note(step)

    save = lambda step: checkpoints.save(step, timed.state, {})
    rounds = [
      _round(i * STEPS.value + 1, checkpoints, save, timed.step, watched)
      for i in range(ROUNDS.value)
    ]
    for thing in (log, watchdog, profiler, checkpoints):
      thing.close()
  step = statistics.median(x for took in rounds for x in took.bare)
  print(_table(rounds))
  print(f"\n{ROUNDS.value} rounds of {STEPS.value} steps, a bare one {step:.2f} s (median).")
  writing = statistics.median(len(took.saving) for took in rounds)
  print(f"A checkpoint has {size / 2**20:.0f} MiB and is written for {writing:g} steps (median).")


class Round(NamedTuple):
  """Seconds of the steps of a round, by kind.

  Attributes:
    saving: from the call that begins a save until it is on the disk.
    bare: of the rest, every other one.
    watched: the ones between.
  """

  saving: list[float]
  bare: list[float]
  watched: list[float]

  def saving_cost(self) -> float:
    """What the save added, over the round without it."""
    step = statistics.median(self.bare)
    return sum(x - step for x in self.saving) / (step * sum(map(len, self)))

  def watching_cost(self) -> float:
    """What watching added to a step, over a bare one."""
    return statistics.median(self.watched) / statistics.median(self.bare) - 1


def _round(
  first: int,
  checkpoints: Any,
  save: Callable[[int], None],
  bare: Callable[[], Any],
  watched: Callable[[int], None],
) -> Round:
  """Takes the steps of a round from number `first` on."""
  took = Round([], [], [])
  for step in range(first, first + STEPS.value):
    started = time.monotonic()
    if step == first:
      save(step)
    kind = took.saving
    if checkpoints.latest() == first:
      kind = took.bare if len(took.bare) <= len(took.watched) else took.watched
    if kind is took.watched:
      watched(step)
    else:
      bare()
    checkpoints.check()
    kind.append(time.monotonic() - started)
  print(f"steps {first} to {step}: {took}", file=sys.stderr, flush=True)
  if not took.watched:
    raise InputError(f"--steps={STEPS.value} must be more: the checkpoint was still being written.")
  return took


def _table(rounds: list[Round]) -> str:
  rows = []
  for name, cost in (("saving", Round.saving_cost), ("watching", Round.watching_cost)):
    costs = sorted(100 * cost(took) for took in rounds)
    quartiles = (
      statistics.quantiles(costs, n=4, method="inclusive") if len(costs) > 1 else costs * 3
    )
    cells = (f"{x:+.2f} %" for x in (quartiles[1], quartiles[0], quartiles[2], costs[0], costs[-1]))
    rows.append((name, *cells))
  header = ("", "cost, median of the rounds", "quartile", "quartile", "least", "most")
  return table(header, rows)


if __name__ == "__main__":
  command_line.run(main)
