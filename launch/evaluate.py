"""Measures a checkpoint's student and its teacher on held-out text.

    python launch/evaluate.py --checkpoint=runs/tiny

stdout is one JSON object; its `differs` names inputs that are not those of the training, null if
nobody knows. The config is the one that the run stored, unless --config gives another:
its data and sizes of an evaluation may differ, its student and teacher must be those of the run.
"""

from __future__ import annotations

import json
import pathlib
import sys

if __name__ == "__main__":
  # So that `launch` and `configs` are found from any working directory.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import launch

launch.require_environment()

from launch import accelerators, command_line

CONFIG = command_line.define_config(required=False)
CHECKPOINT = command_line.required(
  "checkpoint", "A workdir, meaning its latest whole checkpoint, or its checkpoints/<step>."
)


def main() -> None:
  """Restores the student and prints its evaluation."""
  accelerators.import_jax()
  from egad_jax import from_config
  from egad_jax.durability import identity, restoring
  from egad_jax.durability import workdir as files
  from egad_jax.files import object_store
  from egad_jax.training.compiled_run import CompiledRun
  from egad_jax.training.fingerprints import fingerprints

  object_store.require(CHECKPOINT.value, "--checkpoint")
  accelerators.require_devices()
  workdir, step = restoring.locate(CHECKPOINT.value)
  given = bool(CONFIG.name)
  config = (
    command_line.config(CONFIG) if given else command_line.stored_config(workdir / files.CONFIG)
  )
  experiment = from_config.build(config, workdir)
  # With other ids the student would be asked for tokens that it does not know.
  found = fingerprints(experiment, starts=False)
  differs = identity.require(workdir, found, identity.TOKENIZERS)
  step, state = restoring.restore_state(workdir, step, experiment.abstract_state())
  result = CompiledRun(experiment).evaluate(state)
  measured = {key: result[key] for key in ("tokens", "student", "teacher")}
  command_line.print_result(json.dumps({"step": step, "differs": differs} | measured))


if __name__ == "__main__":
  command_line.run(main)
