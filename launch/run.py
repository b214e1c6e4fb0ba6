"""Trains: `python launch/run.py --config=configs/tiny.py --workdir=runs/tiny`.

The same command again resumes; a finished run is a no-op.
"""

from __future__ import annotations

import pathlib
import sys

# So that `launch` and `configs` are found from any working directory.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import flags

from egad_jax.errors import InputError
from launch import command_line

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, made if missing.")
FORCE = flags.DEFINE_bool("force", False, "Go on although the workdir's config differs.")
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the resolved config and exit.")


def main() -> int:
  """Runs or resumes the config in the workdir."""
  config = command_line.config(CONFIG)
  if PRINT_CONFIG.value:
    print(config)
    return 0
  if not WORKDIR.value:
    raise InputError("--workdir is required: the directory of the run, made if missing.")
  # Late, so that --help and bad flags answer at once.
  from egad_jax import build
  from egad_jax.training import loop, results
  from egad_jax.training.workdir import Workdir

  build.validate(config)
  with Workdir(WORKDIR.value) as workdir:
    values = build.plain(config)
    workdir.check_config(values, force=FORCE.value)
    if results.is_finished(workdir, config.steps):
      print(f"{workdir.path}: this run is finished; nothing to do.")
      return 0
    run = build.build(config, workdir.path)
    workdir.require_space(run.disk_bytes())
    workdir.store_config(values)
    loop.train(run, workdir)
    results.print_whereabouts(workdir)
  return 0


if __name__ == "__main__":
  command_line.run(main)
