"""What asynchronous saving and watching cost a run: python -m benchmarks.overhead [--rounds=3]

Sections of steps in turn: bare; with a checkpoint begun at the first; with clock, watchdog,
profiler and utilization around every step and a line of metrics after it. On this machine's CPU,
where writing takes time from computing that it would not take from an accelerator.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
import tempfile
import time

from absl import flags
from etils import epath

from launch import command_line

ROUNDS = flags.DEFINE_integer("rounds", 3, "Sections of each kind.", 1)
STEPS = flags.DEFINE_integer("steps", 20, "Steps of a section, and between two saves.", 1)
ROWS = flags.DEFINE_integer("rows", 8, "Rows of 64 tokens of a step.", 1)


def main() -> None:
  """Prints the table."""
  import jax

  from benchmarks.step_measured import Timed, small_config
  from egad_jax import build
  from egad_jax.training.checkpoints import Checkpoints
  from egad_jax.training.goodput import Goodput
  from egad_jax.training.metrics import MetricLog
  from egad_jax.training.profiling import Profiler, Window
  from egad_jax.training.utilization import Utilization, minimum_flops
  from egad_jax.training.watchdog import Limits, Watchdog
  from egad_jax.training.workdir import Workdir

  config = small_config()
  config.batch_size = ROWS.value
  run = build.plan_run(config, jax.devices()[:1])
  timed = Timed(run, run.place_teacher())
  timed.step()
  size = sum(x.nbytes for x in jax.tree.leaves(timed.state))
  count = [0]

  def bare(first: bool) -> None:
    timed.step()

  with tempfile.TemporaryDirectory(dir=pathlib.Path.cwd()) as scratch, Workdir(scratch) as workdir:
    checkpoints = Checkpoints(epath.Path(scratch) / "checkpoints", keep=2)
    measure = Utilization(minimum_flops(run), jax.devices()[:1]).measure
    log = MetricLog(workdir, steps=10**6, start=0, log_every=1, tensorboard=True, measure=measure)
    watchdog, profiler = Watchdog(Limits(600.0, 3600.0)), Profiler(workdir / "p", Window(0, 5))
    clock = Goodput(workdir, entered=watchdog.enter)

    def saving(first: bool) -> None:
      if first:
        checkpoints.save(count[0], timed.state, {})
      timed.step()
      checkpoints.check()

    def watching(first: bool) -> None:
      with clock.section("step"):
        with clock.section("data"):
          pass
        seconds = profiler.call(count[0], timed.step)
        log.write(count[0], timed.values(), epoch=0.0, tokens=0, seconds=seconds)
        clock.note(count[0])

    kinds = {"bare": bare, "saving": saving, "watching": watching}
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for i in range(ROUNDS.value):
      for name in kinds if i % 2 == 0 else reversed(kinds):
        started = time.monotonic()
        for step in range(STEPS.value):
          count[0] += 1
          kinds[name](step == 0)
        took[name].append(time.monotonic() - started)
        print(f"round {i + 1}, {name}: {took[name][-1]:.2f} s", file=sys.stderr, flush=True)
      checkpoints.wait()
    for thing in (log, watchdog, profiler, checkpoints):
      thing.close()
  print(_table(took))
  sections = f"{STEPS.value} steps a section, {ROUNDS.value} of each"
  print(f"\n{sections}; a checkpoint has {size / 2**20:.0f} MiB.")


def _table(took: dict[str, list[float]]) -> str:
  from benchmarks.markdown import table

  rows = []
  for name, seconds in took.items():
    ratios = [a / b for a, b in zip(seconds, took["bare"], strict=True)]
    spread = f"{min(ratios):.4f} to {max(ratios):.4f}"
    median = statistics.median(seconds) / STEPS.value
    rows.append((name, f"{median:.3f}", f"{statistics.median(ratios):.4f}", spread))
  return table(("section", "step, s", "over bare", "spread"), rows)


if __name__ == "__main__":
  command_line.run(main)
