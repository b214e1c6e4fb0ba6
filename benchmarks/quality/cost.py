"""What a step of each student costs, as the compiler models it for TPUs.

Command: python -m benchmarks.quality.cost [--students=NAME,NAME] > benchmarks/quality/cost.jsonl

Prints a line of JSON for each student: "step_seconds", and "gib", the memory of a chip; `tables`
draws the table from them. The pair is that of the real teacher, SmolLM2-135M-Instruct into 13 of
its layers, with 64 rows of 512 tokens a step on four chips; the losses are those of the students of
the small setting. A minute a student.
"""

from __future__ import annotations

import json
import pathlib
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
  "Names in benchmarks/quality/students.",
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
    yield name, config


def main() -> None:
  """Prints the lines as they come."""
  # Before jax is imported, which reads the environment then.
  from egad_jax.planning.environment import prepare_environment

  prepare_environment(TOPOLOGY.value)
  from egad_jax import from_config
  from egad_jax.chips import topology
  from egad_jax.planning.plan import devices_of, plan

  slice_ = topology(TOPOLOGY.value)
  devices = devices_of(slice_)
  for name, config in _configs(STUDENTS.value):
    made = plan(from_config.plan_run(config, devices), slice_, config=name)
    assert made.modelled_seconds is not None
    line = {
      "name": name,
      "topology": TOPOLOGY.value,
      "step_seconds": round(made.modelled_seconds, 4),
      "gib": round(made.total_bytes / 2**30, 2),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
  command_line.run(main)
