"""How the commands that train start and end: their flags, processes, signals and exit codes."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

from absl import flags

from egad_jax import progress, streams
from egad_jax.durability import preemption
from egad_jax.errors import InputError
from launch import accelerators, command_line, terminal

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

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


def run(program: str, train: Callable[[str, preemption.Preemption], str]) -> int:
  """Joins the processes, trains, and returns the exit code.

  Args:
    program: name of the command, for messages.
    train: takes the directory of `WORKDIR` and what says when to end early, trains, and returns
      what is to be told of it on stdout. All processes call it.

  Raises:
    InputError: a flag is bad, or `train` raised it.
  """
  workdir = WORKDIR.value
  if not workdir:
    raise InputError("--workdir is required: the directory of the run, made if missing.")
  early = preemption.Preemption()
  early.watch()
  # Late, so that --help and bad flags answer at once.
  with progress.phase("importing JAX"):
    accelerators.import_jax()
    from egad_jax import from_config, processes
    from egad_jax.durability.checkpoints import CheckpointError
    from egad_jax.files import object_store

    del from_config  # `train` needs it, and importing it takes most of the phase.

  object_store.require(workdir, "--workdir")
  try:
    with progress.phase("looking for other processes of this run"):
      processes.join(ADDRESS.value, COUNT.value, INDEX.value, heartbeat_seconds=HEARTBEAT.value)
  except processes.JoinError as error:
    print(f"{program}: {error}", file=sys.stderr)
    return 1
  if processes.is_multiprocess():
    early.share()
  accelerators.require_devices()
  if not processes.is_first():
    terminal.show_only_warnings()
  streams.outlive_stdout()
  try:
    command_line.print_result(train(workdir, early))
  except preemption.Preempted:
    return preemption.PREEMPTED
  except (FloatingPointError, CheckpointError) as error:
    print(f"{program}: {error}", file=sys.stderr)
    return 1
  except Exception as error:
    full = _full_disk(error)
    if full:
      print(f"{program}: {full}", file=sys.stderr)
    if full and not processes.is_multiprocess():
      return 1
    if isinstance(error, InputError) or not processes.is_multiprocess():
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
