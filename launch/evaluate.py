"""Evaluates a checkpoint: `python launch/evaluate.py --config=FILE --checkpoint=WORKDIR`.

stdout is one JSON object: student and teacher on the config's held-out tokens. `differs` names what
the config reads that is not what the checkpoint was trained with; null: nobody knows.
"""

from __future__ import annotations

import json
import pathlib
import sys

# So that `launch` and `configs` are found from any working directory.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from launch import command_line

CONFIG = command_line.define_config()
CHECKPOINT = command_line.required(
  "checkpoint", "A workdir, meaning its latest whole checkpoint, or its checkpoints/<step>."
)


def main() -> None:
  """Restores the student and prints its evaluation."""
  from egad_jax import build
  from egad_jax.training import identity, restoring
  from egad_jax.training.programs import Programs

  config = command_line.config(CONFIG)
  workdir, step = restoring.locate(CHECKPOINT.value)
  run = build.build(config, workdir)
  # With other ids the student would be asked for tokens that it does not know.
  found = identity.fingerprints(run, starts=False)
  differs = identity.require(workdir, found, identity.TOKENIZERS)
  step, state = restoring.restore_state(workdir, step, run.abstract_state())
  result = Programs(run).evaluate(state)
  measured = {key: result[key] for key in ("tokens", "student", "teacher")}
  print(json.dumps({"step": step, "differs": differs} | measured))


if __name__ == "__main__":
  command_line.run(main)
