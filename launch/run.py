"""Trains: `python launch/run.py --config=configs/tiny.py --workdir=runs/tiny`.

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
# So that `launch` and `configs` are found from any working directory.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import ml_collections
from absl import flags

from egad_jax.errors import InputError
from egad_jax.training import preemption
from launch import command_line

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, made if missing.")
ADDRESS = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
COUNT = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
INDEX = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_seconds", 100, "A process that is silent for so long ends the others.", 1
)
FORCE = flags.DEFINE_bool(
  "force", False, "Go on although config, teacher, tokenizer or data differ; the report says so."
)
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
  from egad_jax import build, processes
  from egad_jax.training.checkpoints import CheckpointError

  processes.join(ADDRESS.value, COUNT.value, INDEX.value, heartbeat_seconds=HEARTBEAT.value)
  if processes.joined():
    early.share()
  command_line.log_only_warnings_unless(processes.is_first())
  try:
    # One that is refused alone would leave the others waiting.
    processes.together(lambda: build.validate(config))
    train(config, WORKDIR.value, early, force=FORCE.value)
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


def train(
  config: ml_collections.ConfigDict, path: str, early: preemption.Preemption, *, force: bool = False
) -> None:
  """Runs or resumes a config that `build.validate` has accepted, and writes its results.

  Raises:
    InputError: an input is bad, or the workdir is not of this run.
  """
  from egad_jax import build, processes
  from egad_jax.training import identity, loop, results
  from egad_jax.training.restoring import steps_of
  from egad_jax.training.workdir import CHECKPOINTS, Workdir, flat

  values = build.plain(config)
  same = {f"config.{key}": value for key, value in flat(values).items()}
  same |= {"--workdir": path, "--force": force, **identity.code_fingerprints()}
  processes.require_equal(same)
  open_workdir = lambda: Workdir(path, writes=processes.is_first())
  with processes.together(open_workdir, first_alone=True) as workdir:
    changed = processes.together(lambda: workdir.check_config(values, force=force))
    if results.is_finished(workdir, config.steps):
      if changed:
        raise InputError(
          f"--workdir {workdir.path} holds a finished run, which --force cannot change any more "
          f"({', '.join(changed)}); use another workdir, or raise config.steps to train it further."
        )
      if workdir.writes:
        print(f"{workdir.path}: this run is finished; nothing to do.")
      return
    run = processes.together(lambda: build.build(config, workdir.path), first_alone=True)
    starts = not steps_of(workdir / CHECKPOINTS)
    found = identity.fingerprints(run, starts=starts)
    processes.require_equal(found)
    record = processes.together(lambda: identity.check(workdir, values, found, force=force))
    processes.together(lambda: workdir.require_space(run.disk_bytes()))
    identity.store(workdir, record)
    workdir.store_config(values)
    loop.train(run, workdir, early, started=_STARTED)
    if workdir.writes:
      results.print_whereabouts(workdir)


if __name__ == "__main__":
  command_line.run(main)
