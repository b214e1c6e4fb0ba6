"""Reads JSON from other people's files and refuses what programs read differently."""

from __future__ import annotations

import codecs
import collections
import json
import math
import os
from typing import Any

from egad_jax.errors import InputError
from egad_jax.files.regular_file import is_there, read_regular

_BYTE_ORDER_MARKS = {
  "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
  "UTF-8 with a byte-order mark": (codecs.BOM_UTF8,),
}


def read_json(path: os.PathLike[str]) -> dict[str, Any]:
  """Reads a JSON object in UTF-8.

  Duplicate keys are refused, as programs differ in which of the values they take, and so are NaN
  and Infinity, which JSON does not have.

  Raises:
    InputError: the file is missing or holds something else.
  """
  if not is_there(path):
    raise InputError(f"{path}: no such file; expected one that holds a JSON object.")
  return parse_json(path, read_regular(path))


def parse_json(source: os.PathLike[str] | str, content: bytes) -> dict[str, Any]:
  """Reads a JSON object from the bytes of a file; see `read_json`.

  Args:
    source: name of the file, for messages.
    content: bytes of the whole file.

  Raises:
    InputError: they are not a JSON object in UTF-8, or begin with a byte-order mark.
  """
  for name, marks in _BYTE_ORDER_MARKS.items():
    if content.startswith(marks):
      raise InputError(f"{source} is {name}; save it as plain UTF-8, without a mark in front.")
  try:
    data = json.loads(
      content.decode("utf-8"),
      object_pairs_hook=_object,
      parse_constant=_refuse_constant,
      parse_float=_finite,
    )
  # Nesting too deep for Python's parser is a RecursionError.
  except (ValueError, RecursionError) as error:
    raise InputError(
      f"{source} is not valid JSON: {error}. Correct it, or copy the file again."
    ) from error
  if not isinstance(data, dict):
    raise InputError(f"{source}: expected a JSON object; got {type(data).__name__}.")
  return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    raise ValueError(f"the key {counts.most_common(1)[0][0]!r} is there twice")
  return found


def _refuse_constant(name: str) -> None:
  raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"{text} is too large a number")
  return value
