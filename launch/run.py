"""Trains: `python launch/run.py --config=configs/tiny.py --workdir=runs/tiny`.

The same command again resumes; a finished run is a no-op. SIGTERM, SIGINT or SIGHUP ends it with a
checkpoint and code 75. Several processes join by flags or by what their launcher has set; see
docs/running.md.
"""

from __future__ import annotations

import errno
import os
import pathlib
import sys
import time
import traceback

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STARTED = time.monotonic()
# So that `launch` and `configs` are found from any working directory.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import launch

launch.require_environment()

import ml_collections
from absl import flags

from egad_jax import streams
from egad_jax.errors import InputError
from egad_jax.training import preemption
from launch import accelerators, command_line

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, made if missing.")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
COUNT = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
INDEX = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_seconds", 100, "A process that is silent for so long ends the others.", 1
)
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
  early = preemption.Preemption()
  early.watch()
  # Late, so that --help and bad flags answer at once.
  accelerators.import_jax()
  from egad_jax import build, object_store, processes
  from egad_jax.training.checkpoints import CheckpointError

  build.validate(config)
  object_store.require(WORKDIR.value, "--workdir")
  try:
    processes.join(ADDRESS.value, COUNT.value, INDEX.value, heartbeat_seconds=HEARTBEAT.value)
  except processes.JoinError as error:
    print(f"run.py: {error}", file=sys.stderr)
    return 1
  if processes.joined():
    early.share()
  accelerators.require_devices()
  command_line.log_only_warnings_unless(processes.is_first())
  streams.outlive_stdout()
  try:
    _train(config, WORKDIR.value, early)
  except preemption.Preempted:
    return preemption.PREEMPTED
  except (FloatingPointError, CheckpointError) as error:
    print(f"run.py: {error}", file=sys.stderr)
    return 1
  except Exception as error:
    full = _full_disk(error)
    if full:
      print(f"run.py: {full}", file=sys.stderr)
    if full and not processes.joined():
      return 1
    if isinstance(error, InputError) or not processes.joined():
      raise
    # An orderly end would wait for processes that wait for this one.
    traceback.print_exc()
    os._exit(1)
  return 0


def _full_disk(error: Exception) -> str:
  """What to say of an error that a full disk is the cause of, "" of another."""
  if not isinstance(error, OSError) or error.errno not in _FULL:
    return ""
  where = f"{error.filename}: " if error.filename else ""
  return (
    f"{where}{error.strerror}. Free space there and run the same command again; it goes on from "
    "the last whole checkpoint."
  )


def _train(config: ml_collections.ConfigDict, path: str, early: preemption.Preemption) -> None:
  from egad_jax import build, processes
  from egad_jax.training import loop, results
  from egad_jax.training.watchdog import Limits, Watchdog
  from egad_jax.training.workdir import Workdir

  values = build.plain(config)
  open_workdir = lambda: Workdir(path, writes=processes.is_first())
  alone = not processes.joined()
  with (
    Watchdog(Limits(**config.watchdog.to_dict())) as watchdog,
    processes.together(watchdog.prepare(open_workdir, alone=alone), first_alone=True) as workdir,
  ):
    early.while_stopped = watchdog.suspended
    processes.together(lambda: workdir.check_config(values, force=FORCE.value))
    if results.is_finished(workdir, config.steps):
      if workdir.writes:
        print(f"{workdir.path}: this run is finished; nothing to do.")
      return
    make = watchdog.prepare(lambda: build.build(config, workdir.path), alone=alone)
    run = processes.together(make, first_alone=True)
    processes.together(lambda: workdir.require_space(run.disk_bytes()))
    workdir.store_config(values)
    loop.train(run, workdir, early, started=_STARTED, watchdog=watchdog)
    if workdir.writes:
      results.print_whereabouts(workdir)


if __name__ == "__main__":
  command_line.run(main)
