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

import launch

launch.require_environment()

from launch import accelerators, command_line

CHECKPOINT = command_line.required(
  "checkpoint", "A workdir, meaning its latest whole checkpoint, or its checkpoints/<step>."
)
OUTPUT = command_line.required(
  "output", "Directory to write: a new or empty one, or an earlier export, which is replaced."
)


def main() -> None:
  """Restores the student and writes it."""
  accelerators.import_jax()
  from egad_jax import from_config
  from egad_jax.durability import identity, restoring
  from egad_jax.durability import workdir as files
  from egad_jax.files import object_store, owned, paths, replacing
  from egad_jax.files.storage import read_json
  from egad_jax.training import results
  from egad_jax.training.fingerprints import fingerprints
  from egad_jax.training.state import student_params

  object_store.require(CHECKPOINT.value, "--checkpoint")
  object_store.require(OUTPUT.value, "--output")
  accelerators.require_devices()
  workdir, step = restoring.locate(CHECKPOINT.value)
  config = command_line.stored_config(workdir / files.CONFIG)
  output = paths.parse(OUTPUT.value, "--output")
  replacing.require_replaceable(output, "--output", owned.EXPORT)
  read = {f"--checkpoint {name}": workdir / name for name in (files.CONFIG, files.CHECKPOINTS)}
  owned.require_apart(output, "--output", from_config.input_paths(config) | read)
  experiment = from_config.build(config, workdir)
  # The card names the teacher and its licence; the data is in the weights already.
  found = fingerprints(experiment, starts=False)
  identity.require(workdir, found, (*identity.TOKENIZERS, "teacher_weights"))
  step, state = restoring.restore_state(workdir, step, experiment.abstract_state())
  summary = results.summary_of(experiment, workdir, state)
  results.export(
    experiment,
    student_params(state.trainable, {}),
    output,
    summary=summary,
    config=from_config.plain(config),
    samples=read_json(workdir / files.SAMPLES) if "student_after" in summary else None,
    what="--output",
  )
  command_line.print_result(str(output))


if __name__ == "__main__":
  command_line.run(main)
