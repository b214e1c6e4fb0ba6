"""Reads files of results or of students: a student a line, as JSON."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from egad_jax.errors import InputError


def read(path: pathlib.Path, flag: str = "--results") -> list[dict[str, Any]]:
  """Reads the lines of a file that a flag names; empty lines are left out.

  Raises:
    InputError: the file cannot be read as JSON lines, or has none.
  """
  try:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
  except (OSError, ValueError) as error:
    raise InputError(f"{flag}: {path} cannot be read as JSON lines: {error}") from error
  if not lines:
    raise InputError(f"{flag}: {path} is empty.")
  return lines
