"""What a step of each student costs, as the compiler models it for TPUs.

Command: python -m benchmarks.quality.cost [--students=NAME,NAME]

The pair is that of the real teacher, SmolLM2-135M-Instruct into 13 of its layers, with 64 rows of
512 tokens a step on four chips; the losses are those of the students of the small setting. Half a
minute a student.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from benchmarks.quality.lines import read
from configs import default
from egad_jax.errors import InputError
from launch import command_line

STUDENTS = flags.DEFINE_list(
  "students",
  [
    "kd",
    "default",
    "default_hard",
    "default_last",
    "default_uncertain_annealed",
    "all_three_annealed",
    "abstract",
    "temperature",
    "temperature_matched",
    "temperature_shape",
    "curriculum",
    "adakd",
    "aekt",
    "ea_kd",
    "se_kd",
    "taid",
    "trg",
    "reverse_kl",
    "jensen_shannon",
  ],
  "Names in benchmarks/quality/students; the others are compared with the first one.",
)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "CHIP:SHAPE to model.")
_DIRECTORY = pathlib.Path(__file__).parent / "students"
_PAIR = {
  # A plan reads the architecture and no files, so the source only has to have a name.
  "teacher.source": "SmolLM2-135M-Instruct",
  "teacher.architecture": "smollm2-135m",
  "student.layers": 13,
  "batch_size": 64,
  "seq_len": 512,
}


def _configs(names: list[str]) -> Iterator[tuple[str, Any]]:
  """Yields (name, config) of each student, with its changes made to the pair's config."""
  files = sorted(_DIRECTORY.glob("small*.jsonl"))
  lines = {line["name"]: line for path in files for line in read(path, "--students")}
  if unknown := [name for name in names if name not in lines]:
    raise InputError(f"--students: no {', '.join(unknown)}; there are {', '.join(lines)}.")
  for name in names:
    config = default.get_config()
    changes = {k.removeprefix("config."): v for k, v in lines[name].items() if k != "name"}
    config.update_from_flattened_dict(_PAIR | changes)
    yield f"`{name}`", config


def main() -> None:
  """Prints the table."""
  # Before jax is imported, which reads the environment then.
  from egad_jax.planning.environment import prepare_environment

  prepare_environment(TOPOLOGY.value)
  from benchmarks.step_modelled import modelled

  report = lambda line: print(line, file=sys.stderr, flush=True)
  command_line.print_result(modelled(_configs(STUDENTS.value), TOPOLOGY.value, report))


if __name__ == "__main__":
  command_line.run(main)
