"""Builds the experiments of students that are trained together, with one teacher for them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from egad_jax.errors import InputError
from egad_jax.from_config.experiment import build
from egad_jax.from_config.validation import compiler_options
from egad_jax.from_config.values import Config
from egad_jax.teachers import share
from egad_jax.training.experiment import Experiment

# What students of one sweep share, and the keys (or, with a dot at the end, groups of keys) that
# decide it.
_FIXED: tuple[tuple[str, tuple[str, ...]], ...] = (
  ("the teacher", ("teacher.", "attention", "compiler_options")),
  ("the rows and their tokens", ("data.", "student.tokenizer", "seq_len")),
  ("the order of the data", ("seed", "batch_size", "accumulation")),
  ("the held-out rows", ("eval.rows", "eval.batch_size")),
  ("the devices", ("mesh.",)),
  ("the process", ("watchdog.", "profile.", "compilation_cache", "trackers")),
)
# A tracker of another kind follows one run at a time in a process.
_TRACKERS = ("tensorboard",)


def check_shared(where: str, keys: Iterable[str]) -> None:
  """Checks that a student changes none of the keys that all students of a sweep share.

  Args:
    where: what changes the keys, for the message.
    keys: the dotted keys that are changed, without "config.".

  Raises:
    InputError: some of them are shared; the message names each, and what it decides.
  """
  refused = [
    f"config.{key} ({what})"
    for key in keys
    for what, fixed in _FIXED
    if any(key == name or (name.endswith(".") and key.startswith(name)) for name in fixed)
  ]
  if refused:
    raise InputError(
      f"{where} changes {', '.join(refused)}, which all students of a sweep share. Change it for "
      "all of them with --config, or give this student a run of its own."
    )


def check_sweep(config: Config) -> None:
  """Checks what a sweep asks of the config that its students change.

  Raises:
    InputError: a tracker cannot follow several runs in one process.
  """
  others = [name for name in config.trackers if name not in _TRACKERS]
  if others:
    raise InputError(
      f"config.trackers ({', '.join(others)}) must be {' or '.join(_TRACKERS)} or () in a sweep: "
      "other trackers follow one run at a time in a process."
    )


def build_together(
  configs: Mapping[str, Config], workdir: epath.PathLike, *, devices: Any = None
) -> list[Experiment]:
  """Makes the experiments of students that are trained together; their data is prepared once.

  Args:
    configs: the config of each student, by its name. Each has been validated, and they differ in no
      key that `check_shared` refuses.
    workdir: the directory in whose data/ the data is prepared, as for `build`.
    devices: the devices to make meshes of; None for all devices of all processes.

  Returns:
    An experiment for each config, whose teacher computes the outputs of a batch for all of them.

  Raises:
    InputError: a config cannot be built, or reads other rows than the first one does; the message
      names the student.
  """
  experiments: list[Experiment] = []
  for name, config in configs.items():
    try:
      experiments.append(build(config, workdir, devices=devices))
    except InputError as error:
      raise InputError(f"student {name}: {error}") from error
  _check_same_rows(list(configs), experiments)
  first, config = experiments[0], next(iter(configs.values()))
  teachers = share([e.teacher for e in experiments], compiler_options(config) or None)
  return [
    dataclasses.replace(
      experiment,
      teacher=teacher,
      # One object, so that the teacher continues the prompts by one program.
      models=dataclasses.replace(experiment.models, teacher=first.models.teacher),
    )
    for experiment, teacher in zip(experiments, teachers, strict=True)
  ]


def _check_same_rows(names: Sequence[str], experiments: Sequence[Experiment]) -> None:
  """Some keys of the student, such as method=x_token, decide its tokenizer and so the rows."""
  first = experiments[0]
  for name, experiment in zip(names, experiments, strict=True):
    if experiment.rows.fingerprint != first.rows.fingerprint:
      kinds = [f"{e.rows.sides} tokenizer(s)" for e in (experiment, first)]
      raise InputError(
        f"student {name} trains on other packed rows than student {names[0]} (of {kinds[0]} and "
        f"{kinds[1]}): its config.method or config.student.source has another tokenizer. Students "
        "of a sweep share their rows; give this student a run of its own."
      )
