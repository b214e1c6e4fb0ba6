"""Reads the text and JSON files that come with a tokenizer, up to a limit of size."""

from __future__ import annotations

from typing import Any

from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import json_file
from egad_jax.files.regular_file import read_regular


def read_text(path: epath.Path) -> str:
  """Reads a text file.

  Raises:
    InputError: the file is missing, too large, unreadable or not UTF-8.
  """
  try:
    return read_regular(path).decode()
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: cannot be read: {error}. Copy the file again.") from error


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; a missing file gives an empty one.

  Raises:
    InputError: the file holds something else.
  """
  return json_file.read_json(path) if path.exists() else {}
