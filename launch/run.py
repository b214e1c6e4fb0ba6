"""Trains a student by distillation, or resumes its training.

    python launch/run.py --config=configs/tiny.py --workdir=runs/tiny

The same command again resumes; a finished run is a no-op. SIGTERM, SIGINT or SIGHUP ends it with a
checkpoint and code 75. Several processes join by flags or by what their launcher has set; see
docs/running.md.
"""

from __future__ import annotations

import functools
import pathlib
import sys
import time
from typing import TYPE_CHECKING

_STARTED = time.monotonic()
if __name__ == "__main__":
  # So that `launch` and `configs` are found from any working directory.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import launch

launch.require_environment()

import ml_collections
from absl import flags

from egad_jax.errors import InputError
from launch import command_line, config_file, training_command

if TYPE_CHECKING:
  from egad_jax.durability.preemption import Preemption
  from egad_jax.durability.workdir import Workdir

CONFIG = command_line.define_config()
PRINT_CONFIG = flags.DEFINE_bool(
  "print_config", False, "Print the resolved config, for --config=FILE.yaml, and exit."
)


def main() -> int:
  """Runs or resumes the config in the workdir."""
  config = command_line.config(CONFIG)
  if PRINT_CONFIG.value:
    from egad_jax import from_config

    from_config.validate(config, given=command_line.given_keys())
    command_line.print_result(config_file.as_yaml(config))
    return 0
  return training_command.run("run.py", functools.partial(_train, config))


def _train(config: ml_collections.ConfigDict, path: str, early: Preemption) -> str:
  from egad_jax import from_config, processes

  # One that is refused alone would leave the others waiting.
  given = command_line.given_keys()
  processes.on_all_processes(lambda: from_config.validate(config, given=given))
  return train(config, path, early, force=training_command.FORCE.value)


def train(
  config: ml_collections.ConfigDict, path: str, early: Preemption, *, force: bool = False
) -> str:
  """Runs or resumes a config that `from_config.validate` has accepted, and writes its results.

  Returns:
    What is to be told of it on stdout.

  Raises:
    InputError: an input is bad, or the workdir is not of this run.
  """
  from egad_jax import from_config, processes
  from egad_jax.durability import identity
  from egad_jax.durability.restoring import steps_of
  from egad_jax.durability.watchdog import Limits, Watchdog
  from egad_jax.durability.workdir import CHECKPOINTS, Workdir, flat
  from egad_jax.training import loop, overview, results
  from egad_jax.training.fingerprints import fingerprints

  values = from_config.plain(config)
  # The package of a tracker that is not installed is told before any work.
  options = processes.on_all_processes(lambda: from_config.loop_options(config))
  same = {f"config.{key}": value for key, value in flat(values).items()}
  same |= {"--workdir": path, "--force": force, **identity.code_fingerprints()}
  processes.require_equal(same)
  open_workdir = lambda: Workdir(path, writes=processes.is_first())
  alone = not processes.is_multiprocess()
  with (
    Watchdog(Limits(**config.watchdog.to_dict())) as watchdog,
    processes.on_all_processes(
      watchdog.prepare(open_workdir, alone=alone), first_alone=True
    ) as workdir,
  ):
    early.while_stopped = watchdog.suspended
    changed = processes.on_all_processes(lambda: workdir.check_config(values, force=force))
    if results.is_finished(workdir, config.steps):
      if changed:
        raise InputError(
          f"--workdir {workdir.path} holds a finished run, which --force cannot change any more "
          f"({', '.join(changed)}); use another workdir, or raise config.steps to train it further."
        )
      return f"{workdir.path}: this run is finished; nothing to do." if workdir.writes else ""
    processes.on_all_processes(lambda: _require_untouched(config, workdir))
    make = watchdog.prepare(lambda: from_config.build(config, workdir.path), alone=alone)
    experiment = processes.on_all_processes(make, first_alone=True)
    starts = not steps_of(workdir / CHECKPOINTS)
    found = fingerprints(experiment, starts=starts)
    processes.require_equal(found)
    record = processes.on_all_processes(lambda: identity.check(workdir, values, found, force=force))
    processes.on_all_processes(lambda: workdir.require_space(options.disk_bytes(experiment)))
    identity.store(workdir, record)
    workdir.store_config(values)
    overview.log(experiment, workdir)
    loop.train(experiment, options, workdir, early, started=_STARTED, watchdog=watchdog)
    return results.whereabouts(workdir) if workdir.writes else ""


def _require_untouched(config: ml_collections.ConfigDict, workdir: Workdir) -> None:
  """Checks, before any work, that nothing of others' is in the way of what the run will write."""
  from egad_jax import from_config
  from egad_jax.durability import workdir as files
  from egad_jax.files import owned

  workdir.require_ours()
  export = workdir / files.EXPORT
  owned.require_apart(export, "--workdir's", from_config.input_paths(config))


if __name__ == "__main__":
  command_line.run(main)
