"""What EGAD, each of its mechanisms and every other method add to the step of plain distillation.

Command: python -m benchmarks.step [--tables=modelled,measured] [--methods=egad,branch]

Modelled: the train step of a preset, compiled for TPUs that need not be there, a minute a method.
Measured: that of a small pair with a real vocabulary, run on this machine's CPU; with
--platform=gpu that of the preset, with random values, on one GPU.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from benchmarks.variants import variants
from egad_jax.errors import InputError
from launch import command_line

CONFIG = command_line.define_config(default="configs/qwen3_1_7b_to_0_6b_v5e.py")
PLATFORM = flags.DEFINE_enum("platform", "cpu", ["cpu", "gpu"], "Where to measure.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "CHIP:SHAPE to model.")
METHODS = flags.DEFINE_list("methods", [], "Which variants beside vanilla_kd; none: all.")
TABLES = flags.DEFINE_list("tables", ["modelled", "measured"], "Which tables.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured: steps of each method, all in turn.")


def _report(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def main() -> None:
  """Prints the tables."""
  config = command_line.config(CONFIG)
  if unknown := set(TABLES.value) - {"modelled", "measured"}:
    raise InputError(f"--tables: no {', '.join(unknown)}; there are modelled, measured.")
  on_gpu = PLATFORM.value == "gpu"
  if on_gpu and "modelled" in TABLES.value:
    raise InputError("--platform=gpu is for --tables=measured; TPUs are modelled on a CPU.")
  # Before jax is imported, which reads the environment then.
  from egad_jax.planning.environment import prepare_environment

  if "modelled" in TABLES.value:
    prepare_environment(TOPOLOGY.value)
    from benchmarks.step_modelled import modelled

    print(modelled(variants(config, METHODS.value), TOPOLOGY.value, _report))
  if "measured" in TABLES.value:
    if on_gpu:
      os.environ["JAX_PLATFORMS"] = "cuda,cpu"
    from benchmarks.step_measured import measured, small_config

    pair = config if on_gpu else small_config()
    print(measured(variants(pair, METHODS.value), ROUNDS.value, _report))


if __name__ == "__main__":
  command_line.run(main)
