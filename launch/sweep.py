"""Trains several students of one teacher together; each is bit for bit that of its own run.

    python launch/sweep.py --config=configs/tiny.py --sweep=students.jsonl --workdir=runs/sweep

The file has a line for each student: {"name": "a", "config.loss.ce_weight": 0.5}. The teacher
computes each batch once. The same command again resumes; a finished sweep is a no-op. See
docs/sweep.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Any

_STARTED = time.monotonic()
if __name__ == "__main__":
  # So that `launch` and `configs` are found from any working directory.
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import launch

launch.require_environment()

import ml_collections
from absl import flags

from egad_jax.errors import InputError
from launch import command_line, training_command

if TYPE_CHECKING:
  from egad_jax.durability.preemption import Preemption
  from egad_jax.durability.sweep_directory import SweepDirectory
  from egad_jax.durability.watchdog import Watchdog
  from egad_jax.durability.workdir import Workdir
  from launch.sweep_file import SweepStudent

CONFIG = command_line.define_config()
SWEEP = flags.DEFINE_string(
  "sweep", None, 'File with a student a line: {"name": "a", "config.loss.ce_weight": 0.5}.'
)
STATES = flags.DEFINE_enum(
  "states", "device", ["device", "host"], "Memory that holds the students between their steps."
)


def main() -> int:
  """Trains or resumes the students in the workdir."""
  config = command_line.config(CONFIG)
  file = SWEEP.value
  if not file:
    raise InputError("--sweep is required: a file with a student a line, see --help.")
  return training_command.run("sweep.py", functools.partial(_train, file, config))


def _train(file: str, config: ml_collections.ConfigDict, path: str, early: Preemption) -> str:
  from egad_jax import processes
  from launch import sweep_file

  # One that is refused alone would leave the others waiting.
  students = processes.on_all_processes(lambda: sweep_file.read(file, config))
  processes.on_all_processes(lambda: _check_overrides(students, command_line.given_keys()))
  force, on_host = training_command.FORCE.value, STATES.value == "host"
  return train(students, path, early, force=force, on_host=on_host)


@dataclasses.dataclass(frozen=True)
class _Open:
  """A student whose workdir is open.

  Attributes:
    line: its line of the file.
    values: its config as plain values.
    workdir: its workdir.
  """

  line: SweepStudent
  values: dict[str, Any]
  workdir: Workdir

  @property
  def name(self) -> str:
    return self.line.name


def train(
  students: list[SweepStudent],
  path: str,
  early: Preemption,
  *,
  force: bool = False,
  on_host: bool = False,
) -> str:
  """Trains or resumes the students, writes their results and compares them.

  Args:
    students: the students of a file, from `sweep_file.read`.
    path: the sweep's directory.
    early: says when to end early.
    force: whether to go on although what the students were trained with has changed.
    on_host: whether the students' states stay in host memory between their steps.

  Returns:
    What is to be told of it on stdout.

  Raises:
    FloatingPointError: students were given up; the others are finished, and the report says so.
    InputError: an input is bad, or a directory is not of this sweep.
  """
  from egad_jax import from_config, processes
  from egad_jax.durability import identity
  from egad_jax.durability.sweep_directory import REPORT, SweepDirectory
  from egad_jax.durability.watchdog import Limits, Watchdog
  from egad_jax.durability.workdir import Workdir, flat
  from egad_jax.reporting import sweep_report

  config = students[0].config
  processes.on_all_processes(lambda: _validate(students))
  values = {student.name: from_config.plain(student.config) for student in students}
  same = {f"{name}: config.{k}": v for name in values for k, v in flat(values[name]).items()}
  same |= {"--workdir": path, "--force": force, **identity.code_fingerprints()}
  processes.require_equal(same)
  writes, alone = processes.is_first(), not processes.is_multiprocess()
  with contextlib.ExitStack() as stack:
    watchdog = stack.enter_context(Watchdog(Limits(**config.watchdog.to_dict())))
    early.while_stopped = watchdog.suspended

    def open_all() -> tuple[SweepDirectory, list[_Open]]:
      directory = stack.enter_context(SweepDirectory(path, writes=writes))
      directory.require_ours()
      opened = []
      for student in students:
        workdir = stack.enter_context(Workdir(f"{path}/{student.name}", writes=writes))
        opened.append(_Open(student, values[student.name], workdir))
      return directory, opened

    directory, opened = processes.on_all_processes(
      watchdog.prepare(open_all, alone=alone), first_alone=True
    )
    unfinished = processes.on_all_processes(lambda: _unfinished(opened, force))
    lines = {student.name: student.changes for student in students}
    if not unfinished and sweep_report.is_written(directory.path, lines):
      return f"{directory.path}: this sweep is finished; nothing to do." if writes else ""
    failures = {}
    if unfinished:
      failures = _train_unfinished(
        unfinished, directory, early, watchdog, force=force, on_host=on_host
      )
    if writes:
      sweep_report.write(directory, lines, failures)
    processes.wait("the report of the sweep")
    if failures:
      raise FloatingPointError(_gave_up(failures, directory))
    return f"Comparison: {directory / REPORT}" if writes else ""


def _validate(students: list[SweepStudent]) -> None:
  from egad_jax import from_config

  for student in students:
    from_config.check_sweep(student.config)
    given = {key.removeprefix("config.") for key in student.changes}
    try:
      from_config.validate(student.config, given=given)
    except InputError as error:
      raise InputError(f"student {student.name}: {error}") from error


def _check_overrides(students: list[SweepStudent], given: set[str]) -> None:
  """Checks that each key that the command line gives is read by a student."""
  from egad_jax import from_config

  _validate(students)
  for key in sorted(given):
    refusals = []
    for student in students:
      try:
        from_config.validate(student.config, given={key})
        break
      except InputError as error:
        refusals.append(error)
    else:
      raise refusals[0]


def _unfinished(opened: list[_Open], force: bool) -> list[_Open]:
  """The students that have something left to do; each workdir is checked against its config."""
  from egad_jax.training import results

  unfinished = []
  for student in opened:
    changed = student.workdir.check_config(student.values, force=force)
    if not results.is_finished(student.workdir, student.line.config.steps):
      unfinished.append(student)
    elif changed:
      raise InputError(
        f"--workdir {student.workdir.path} holds a finished run, which --force cannot change any "
        f"more ({', '.join(changed)}); give the student another name, or raise its config.steps to "
        "train it further."
      )
  return unfinished


def _train_unfinished(
  students: list[_Open],
  directory: SweepDirectory,
  early: Preemption,
  watchdog: Watchdog,
  *,
  force: bool,
  on_host: bool,
) -> dict[str, str]:
  """Trains the students to their end; returns why some were given up, by their names."""
  from egad_jax import from_config, processes, sharding
  from egad_jax.durability import identity
  from egad_jax.durability.restoring import steps_of
  from egad_jax.durability.workdir import CHECKPOINTS
  from egad_jax.training import loop, overview
  from egad_jax.training.fingerprints import fingerprints

  alone = not processes.is_multiprocess()
  configs = {student.name: student.line.config for student in students}
  processes.on_all_processes(lambda: _require_untouched(students))
  build = lambda: from_config.build_together(configs, directory.path)
  experiments = processes.on_all_processes(watchdog.prepare(build, alone=alone), first_alone=True)
  if on_host and not sharding.has_host_memory(experiments[0].mesh):
    raise InputError("--states=host needs devices that reach their host's memory; use device.")
  options = {name: from_config.loop_options(config) for name, config in configs.items()}
  needed = sum(options[s.name].disk_bytes(e) for s, e in zip(students, experiments, strict=True))
  held = sum(student.workdir.held_bytes() for student in students)
  processes.on_all_processes(lambda: directory.require_space(needed, held=held))
  ready = []
  teacher: str | None = None
  for student, experiment in zip(students, experiments, strict=True):
    workdir = student.workdir
    starts = not steps_of(workdir / CHECKPOINTS)
    found = fingerprints(experiment, starts=starts, teacher_weights=teacher)
    teacher = found["teacher_weights"]
    processes.require_equal(found)
    check = lambda at=workdir, v=student.values, f=found: identity.check(at, v, f, force=force)
    record = processes.on_all_processes(check)
    identity.store(workdir, record)
    workdir.store_config(student.values)
    ready.append(loop.Student(student.name, experiment, options[student.name], workdir))
  overview.log(experiments[0], directory, dict(zip(configs, experiments, strict=True)))
  found = loop.train_together(ready, early, on_host=on_host, started=_STARTED, watchdog=watchdog)
  return {
    student.name: str(outcome)
    for student, outcome in zip(students, found, strict=True)
    if not isinstance(outcome, dict)
  }


def _require_untouched(students: list[_Open]) -> None:
  """Checks, before any work, that nothing of others' is in the way of what will be written."""
  from egad_jax import from_config
  from egad_jax.durability.workdir import EXPORT
  from egad_jax.files import owned

  for student in students:
    student.workdir.require_ours()
    inputs = from_config.input_paths(student.line.config)
    owned.require_apart(student.workdir / EXPORT, "--workdir's", inputs)


def _gave_up(failures: dict[str, str], directory: SweepDirectory) -> str:
  from egad_jax.durability.sweep_directory import REPORT

  return " ".join(
    [
      *(f"student {name} was given up: {why}" for name, why in failures.items()),
      f"The other students are finished; {directory / REPORT} compares them.",
    ]
  )


if __name__ == "__main__":
  command_line.run(main)
