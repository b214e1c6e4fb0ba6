"""Writes a checkpoint's student as a Hugging Face directory.

    python launch/export.py --checkpoint=runs/tiny --output=student

The student in Hugging Face layout, from the config that the workdir holds.
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":
  # So that `launch` and `configs` are found from any working directory.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from launch import command_line

CHECKPOINT = command_line.required(
  "checkpoint", "A workdir, meaning its latest whole checkpoint, or its checkpoints/<step>."
)
OUTPUT = command_line.required("output", "Directory to write; one that is there is replaced.")


def main() -> None:
  """Restores the student and writes it."""
  import jax

  from egad_jax import build
  from egad_jax.training import restoring, results
  from egad_jax.training import workdir as files
  from egad_jax.training.storage import read_json

  workdir, step = restoring.locate(CHECKPOINT.value)
  config = command_line.stored_config(workdir / files.CONFIG)
  run = build.build(config, workdir)
  step, state = restoring.restore_state(workdir, step, run.abstract_state())
  # What was measured holds for the last step alone; of another one the card claims nothing.
  summary = read_json(workdir / files.SUMMARY) if step == run.steps else None
  results.export(
    *(run, jax.device_get(state.params["student"]), OUTPUT.value),
    summary=summary or {"method": run.method_name, "steps": step, "seed": run.seed},
    config=build.plain(config),
    samples=read_json(workdir / files.SAMPLES) if summary else None,
  )
  command_line.print_result(OUTPUT.value)


if __name__ == "__main__":
  command_line.run(main)
