"""Trains a student by distillation, or resumes its training.

    python launch/run.py --config=configs/tiny.py --workdir=runs/tiny

The same command again resumes; a finished run is a no-op. SIGTERM or SIGINT ends it with a
checkpoint and code 75. Several processes join by flags or by what their launcher has set; see
docs/running.md.
"""

from __future__ import annotations

import os
import pathlib
import sys
import time
import traceback

_STARTED = time.monotonic()
if __name__ == "__main__":
  # So that `launch` and `configs` are found from any working directory.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import ml_collections
from absl import flags

from egad_jax import progress
from egad_jax.errors import InputError
from egad_jax.training import preemption
from launch import command_line, config_file, terminal

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, made if missing.")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
COUNT = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
INDEX = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_seconds", 100, "A process that is silent for so long ends the others.", 1
)
FORCE = flags.DEFINE_bool("force", False, "Go on although the workdir's config differs.")
PRINT_CONFIG = flags.DEFINE_bool(
  "print_config", False, "Print the resolved config, for --config=FILE.yaml, and exit."
)


def main() -> int:
  """Runs or resumes the config in the workdir."""
  config = command_line.config(CONFIG)
  if PRINT_CONFIG.value:
    from egad_jax import build

    build.validate(config)
    command_line.print_result(config_file.as_yaml(config))
    return 0
  if not WORKDIR.value:
    raise InputError("--workdir is required: the directory of the run, made if missing.")
  early = preemption.Preemption()
  early.watch()
  # Late, so that --help and bad flags answer at once.
  with progress.phase("importing JAX"):
    from egad_jax import build, processes
    from egad_jax.training.checkpoints import CheckpointError

  build.validate(config)
  with progress.phase("looking for other processes of this run"):
    processes.join(ADDRESS.value, COUNT.value, INDEX.value, heartbeat_seconds=HEARTBEAT.value)
  if processes.joined():
    early.share()
  if not processes.is_first():
    terminal.show_only_warnings()
  try:
    command_line.print_result(_train(config, WORKDIR.value, early))
  except preemption.Preempted:
    return preemption.PREEMPTED
  except (FloatingPointError, CheckpointError) as error:
    print(f"run.py: {error}", file=sys.stderr)
    return 1
  except Exception as error:
    if isinstance(error, InputError) or not processes.joined():
      raise
    # An orderly end would wait for processes that wait for this one.
    traceback.print_exc()
    os._exit(1)
  return 0


def _train(config: ml_collections.ConfigDict, path: str, early: preemption.Preemption) -> str:
  """Trains to the end; returns what is to be told of that on stdout."""
  from egad_jax import build, processes
  from egad_jax.training import loop, overview, results
  from egad_jax.training.workdir import Workdir

  values = build.plain(config)
  open_workdir = lambda: Workdir(path, writes=processes.is_first())
  with processes.together(open_workdir, first_alone=True) as workdir:
    processes.together(lambda: workdir.check_config(values, force=FORCE.value))
    if results.is_finished(workdir, config.steps):
      return f"{workdir.path}: this run is finished; nothing to do." if workdir.writes else ""
    run = processes.together(lambda: build.build(config, workdir.path), first_alone=True)
    processes.together(lambda: workdir.require_space(run.disk_bytes()))
    workdir.store_config(values)
    overview.log(run, workdir)
    loop.train(run, workdir, early, started=_STARTED)
    return results.whereabouts(workdir) if workdir.writes else ""


if __name__ == "__main__":
  command_line.run(main)
