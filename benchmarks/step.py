"""What EGAD, each of its mechanisms and every other method add to the step of plain distillation.

Command: python -m benchmarks.step [--tables=modelled,measured] [--methods=egad,branch]

Modelled: the train step of a preset, compiled for TPUs that need not be there, a minute a method.
Measured: that of a small pair with a real vocabulary, run on this machine's CPU.
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from benchmarks.variants import variants
from egad_jax.errors import InputError
from launch import command_line

CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/qwen3_1_7b_to_0_6b_v5e.py", "Config to model.", lock_config=True
)
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
  # Before jax is imported, which reads the environment then.
  from egad_jax.planning.environment import prepare_environment

  if "modelled" in TABLES.value:
    prepare_environment(TOPOLOGY.value)
    from benchmarks.step_modelled import modelled

    print(modelled(variants(config, METHODS.value), TOPOLOGY.value, _report))
  if "measured" in TABLES.value:
    from benchmarks.step_measured import measured, small_config

    print(measured(variants(small_config(), METHODS.value), ROUNDS.value, _report))


if __name__ == "__main__":
  command_line.run(main)
