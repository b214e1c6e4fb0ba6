"""Reads the file of a sweep: a student a line, with its name and the keys that it changes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from egad_jax import from_config
from egad_jax.durability.sweep_directory import RESERVED
from egad_jax.durability.workdir import flat
from egad_jax.errors import InputError
from egad_jax.files import paths
from egad_jax.files.regular_file import read_regular
from launch import config_file

_PREFIX = "config."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclasses.dataclass(frozen=True)
class SweepStudent:
  """A line of the file.

  Attributes:
    name: the student's name, also that of its workdir inside the sweep's.
    changes: dotted key, with "config." -> value, as the file has them.
    config: the whole config of the student.
  """

  name: str
  changes: dict[str, Any]
  config: ml_collections.ConfigDict


def read(path: str, config: ml_collections.ConfigDict) -> list[SweepStudent]:
  """The students of a file, in its order; lines without text are left out.

  Args:
    path: the file, JSON objects like {"name": "a", "config.loss.ce_weight": 0.5}, one a line.
    config: the config that the students change.

  Raises:
    InputError: the file cannot be read or has no student; or a line is no such object, has a name
      that is no name of a directory or was there before, or changes a key that does not exist, has
      another type, or is shared by all students.
  """
  try:
    text = read_regular(paths.parse(path, "--sweep")).decode()
  except InputError as error:
    raise InputError(f"--sweep: {error}") from error
  except (OSError, UnicodeError) as error:
    raise InputError(f"--sweep {path} cannot be read: {error}.") from error
  students: list[SweepStudent] = []
  names: dict[str, int] = {}
  # Not splitlines: it also splits at U+2028, which JSON strings may hold.
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    where = f"--sweep {path}, line {number}"
    record = _record(where, line)
    name = _name(where, record)
    # Some file systems do not tell upper from lower case.
    if name.casefold() in names:
      raise InputError(
        f"{where}: the name {name!r} must be that of one student, and line "
        f"{names[name.casefold()]} has it too (upper and lower case count as the same)."
      )
    names[name.casefold()] = number
    students.append(_student(f"{where} ({name})", name, record, config))
  if not students:
    raise InputError(
      f'--sweep {path} must have a line for each student, like {{"name": "a", '
      '"config.optimizer.learning_rate": 1e-4}; it has none.'
    )
  return students


def _record(where: str, line: str) -> dict[str, Any]:
  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
      raise ValueError("a key is there twice")
    return found

  try:
    record = json.loads(line, object_pairs_hook=unique)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{where} must be a JSON object: {error}.") from error
  if not isinstance(record, dict):
    raise InputError(f"{where} must be a JSON object; it is a {type(record).__name__}.")
  return record


def _name(where: str, record: Mapping[str, Any]) -> str:
  name = record.get("name")
  if not isinstance(name, str) or not _NAME.fullmatch(name) or name.casefold() in RESERVED:
    raise InputError(
      f'{where} must have a "name" of 1 to 100 letters, digits, ".", "_" and "-", the first a '
      f"letter or digit, which becomes a directory; none of {', '.join(RESERVED)}. Got {name!r}."
    )
  return name


def _student(
  where: str, name: str, record: Mapping[str, Any], config: ml_collections.ConfigDict
) -> SweepStudent:
  changes = {key: value for key, value in record.items() if key != "name"}
  values = flat(config.to_dict())
  for key in changes:
    if key.removeprefix(_PREFIX) not in values or not key.startswith(_PREFIX):
      raise InputError(f"{where}: {config_file.no_such_key(key, values, _PREFIX)}")
  keys = {key.removeprefix(_PREFIX): value for key, value in changes.items()}
  from_config.check_shared(where, keys)
  return SweepStudent(name, changes, config_file.checked(where, values | keys))
