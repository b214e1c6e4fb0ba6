"""Reads files of results: a student a line, as JSON."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from egad_jax.errors import InputError


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the lines of a file of results.

  Raises:
    InputError: the file cannot be read as JSON lines, or has none.
  """
  try:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
  except (OSError, ValueError) as error:
    raise InputError(f"--results: {path} cannot be read as JSON lines: {error}") from error
  if not lines:
    raise InputError(f"--results: {path} is empty.")
  return lines
