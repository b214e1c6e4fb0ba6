"""Reads .json files: an array of objects, or an object a line."""

from __future__ import annotations

import codecs
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from egad_jax.data.readers import records
from egad_jax.data.readers.jsonl import read_jsonl
from egad_jax.data.readers.records import BadRecords
from egad_jax.errors import InputError

_READ = 2**20
_BETWEEN = " \t\r\n"


def read_json(file: pathlib.Path, bad: BadRecords) -> Iterator[tuple[int, Any]]:
  """Yields (number from 1, value) of each element of the array, or of each line.

  The array is not held in memory; one element is.

  Args:
    file: the file, perhaps compressed.
    bad: counts bad lines. An array that is broken cannot be read on, so that is an error.

  Raises:
    InputError: the array is not valid JSON, ends too early, or has too long an element.
  """
  with records.opened(file) as content:
    first = records.without_mark(content.read(_READ)).lstrip()[:1]
  return _read_array(file) if first == b"[" else read_jsonl(file, bad)


def _read_array(file: pathlib.Path) -> Iterator[tuple[int, Any]]:
  scanner, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")().decode
  number, at, is_whole, needs_comma = 0, 0, False, False

  def broken(problem: str) -> InputError:
    return InputError(
      f"{file}, element {number + 1}: {problem}. The elements behind it cannot be found: repair "
      "the file, or make a .jsonl file of it, of which single lines may be left out."
    )

  def more(size: int) -> str:
    try:
      data = content.read(size)
      return decode(data, not data)
    except UnicodeDecodeError as error:
      raise broken(f"not valid UTF-8 ({error.reason})") from error

  with records.opened(file) as content:
    text = more(_READ).removeprefix("\ufeff").lstrip(_BETWEEN)[1:]
    while True:
      at = _skip(text, at)
      if needs_comma and text[at : at + 1] == ",":
        at, needs_comma = _skip(text, at + 1), False
      elif text[at : at + 1] == "]":
        return
      elif needs_comma and at < len(text):
        raise broken("not valid JSON (no comma in front of it)")
      try:
        value, end = scanner.raw_decode(text, at)
        # A number at the end of what was read might go on.
        if end == len(text) and not is_whole:
          raise json.JSONDecodeError("cut", text, end)
      except (RecursionError, ValueError) as error:
        if is_whole or not isinstance(error, json.JSONDecodeError):
          message = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
          raise broken(f"not valid JSON ({message})") from error
        text, at = text[at:], 0
        if len(text) > records.LONGEST_RECORD:
          raise broken(f"more than {records.LONGEST_RECORD} characters") from error
        # At least as much as there is, so that a long element is not begun too often.
        added = more(max(_READ, len(text)))
        is_whole, text = not added, text + added
        continue
      number, at, needs_comma = number + 1, end, True
      yield number, value


def _skip(text: str, at: int) -> int:
  while at < len(text) and text[at] in _BETWEEN:
    at += 1
  return at
