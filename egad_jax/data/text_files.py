"""Small files of text and JSON that come with a tokenizer, read within bounds."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from egad_jax.errors import InputError

_MAX_FILE_BYTES = 2**28


def read_text(path: epath.Path) -> str:
  """Reads a text file.

  Raises:
    InputError: if it is too large, unreadable or not UTF-8.
  """
  if path.stat().length > _MAX_FILE_BYTES:
    raise InputError(f"{path}: more than {_MAX_FILE_BYTES} bytes are no tokenizer's file.")
  try:
    return path.read_text()
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: cannot be read: {error}. Copy the file again.") from error


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; an absent file is an empty one.

  Raises:
    InputError: if the file holds anything else.
  """
  return parse_json(path, read_text(path)) if path.exists() else {}


def parse_json(path: epath.Path, text: str) -> dict[str, Any]:
  """The JSON object that is the text of a file.

  Raises:
    InputError: if it is anything else.
  """
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path}: not valid JSON: {error}. Copy the file again.") from error
  if not isinstance(content, dict):
    raise InputError(f"{path}: must be a JSON object; got {type(content).__name__}.")
  return content
