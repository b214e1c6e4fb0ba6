"""Steps of students that share a teacher against steps of runs by themselves, on the devices here.

  JAX_PLATFORMS=cpu python -m benchmarks.sweep [--students 8] [--rounds 5] [--workdir DIR]

The teacher is as large as SmolLM2-135M without its vocabulary, the students have eight narrow
layers. Rounds alternate between both, so that what else the machine does meets both alike. Times
are of the process's processors, which depend less on it than the wall clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

from configs import tiny
from egad_jax import from_config
from egad_jax.teachers import share
from egad_jax.training.compiled_run import CompiledRun
from egad_jax.training.state import TrainState


def small_config() -> Any:
  """The tiny config with a teacher of 30 layers and students of eight narrower ones."""
  config = tiny.get_config()
  config.teacher.source = "random:smollm2-135m"
  config.student.layers, config.student.dim, config.student.mlp_dim = 8, 288, 768
  config.student.num_heads, config.student.num_kv_heads = 4, 2
  config.student.remat = "none"
  config.batch_size, config.compilation_cache = 4, ""
  return config


def stepper(run: CompiledRun, students: int) -> Callable[[Any], None]:
  """A function that makes a step of each of so many states on a batch."""
  states: list[TrainState] = [run.experiment.first_state() for _ in range(students)]
  program = run.compile(states[0], evaluates=False)

  def step(batch: Any) -> None:
    for i, state in enumerate(states):
      states[i], _ = program(state, run.frozen, batch)
    jax.block_until_ready(states)

  return step


def main() -> None:
  """Measures both in turn and prints medians and the ratio."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--students", type=int, default=8)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--workdir", default="")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    alone = from_config.build(small_config(), arguments.workdir or scratch)
    together = dataclasses.replace(alone, teacher=share([alone.teacher])[0])
    kinds = {}
    for name, experiment in (("runs by themselves", alone), ("together", together)):
      run = CompiledRun(experiment)
      batches = run.train_batches(0, lambda: None)  # type: ignore[arg-type,return-value]
      kinds[name] = (stepper(run, arguments.students), batches)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    # The first round warms up.
    for number in range(arguments.rounds + 1):
      for name, (step, batches) in kinds.items():
        started = time.process_time()
        # Runs by themselves read batches of their own, which costs nothing beside a step.
        step(next(batches))
        if number:
          seconds[name].append(time.process_time() - started)
  median = {name: statistics.median(times) for name, times in seconds.items()}
  for name, times in seconds.items():
    shown = ", ".join(f"{x:.1f}" for x in sorted(times))
    print(f"{arguments.students} steps, {name}: {median[name]:.2f} processor seconds ({shown})")
  one, other = (median[name] for name in kinds)
  print(f"together / by themselves: {other / one:.2f}")


if __name__ == "__main__":
  main()
