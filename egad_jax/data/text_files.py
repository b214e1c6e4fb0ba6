"""Small files of text and JSON that come with a tokenizer, read within bounds."""

from __future__ import annotations

from typing import Any

from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import json_file
from egad_jax.files.regular_file import read_regular


def read_text(path: epath.Path) -> str:
  """Reads a text file.

  Raises:
    InputError: if it is too large, unreadable or not UTF-8.
  """
  try:
    return read_regular(path).decode()
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: cannot be read: {error}. Copy the file again.") from error


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; an absent file is an empty one.

  Raises:
    InputError: if the file holds anything else.
  """
  return json_file.read_json(path) if path.exists() else {}
