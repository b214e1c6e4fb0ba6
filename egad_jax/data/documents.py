"""Reads documents from users' text and JSONL files and counts bad records."""

from __future__ import annotations

import glob
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from absl import logging
from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import object_store, paths
from egad_jax.files.regular_file import open_regular

SUFFIXES = (".txt", ".md", ".jsonl")
# A document of a lone file ends at the first blank line after this length, so that the file has
# several documents to split.
_CUT_AFTER_CHARACTERS = 8192
_FORM_FEED = "\f"
# Bytes. Nobody writes longer documents, but a file without line ends is a single one, which would
# have to be held in memory.
_LONGEST_DOCUMENT = 2**28
# Bytes of a line of JSON, which can take twenty times its size in memory.
_LONGEST_RECORD = 2**26
_TOO_LONG = (
  f"a document of more than {_LONGEST_DOCUMENT} bytes; in a lone .txt or .md file two blank lines "
  "or a form feed end one"
)
_MAX_LOGGED = 10


class BadRecords:
  """Counts unusable records and raises when there are more than allowed.

  Attributes:
    maximum: number of bad records that are allowed.
    count: number of bad records so far.
  """

  def __init__(self, maximum: int) -> None:
    self.maximum = maximum
    self.count = 0

  def add(self, path: pathlib.Path, line: int, problem: str) -> None:
    """Counts one bad record and logs a warning, for the first few.

    Args:
      path: the record's file.
      line: the record's line, from 1.
      problem: why it cannot be used.

    Raises:
      InputError: there are now more than `maximum`.
    """
    self.count += 1
    if self.count > self.maximum:
      raise InputError(
        f"{path}, line {line}: {problem}. It is bad record number {self.count} and "
        f"data.max_bad_records is {self.maximum}: repair the file, or raise data.max_bad_records "
        "to leave such records out."
      )
    if self.count <= _MAX_LOGGED:
      logging.warning("%s, line %d: %s; record left out", path, line, problem)


def find_files(source: str) -> list[pathlib.Path]:
  """Lists the files of a source, sorted by name.

  Args:
    source: a file, a directory, or a glob pattern, unless a file or directory of that very name
      exists. A directory is searched recursively for *.txt, *.md and *.jsonl, without hidden files.
      An object store, gs://BUCKET/…, is possible too; its directories are not searched recursively.

  Raises:
    InputError: there is nothing to read, or a file has an unknown suffix.
  """
  object_store.require(source, "data.source")
  try:
    if paths.is_local(source):
      path: Any = pathlib.Path(paths.expand(source, "data.source"))
    else:
      path = paths.parse(source, "data.source")
    files = sorted((file for file in _named(source, path) if not file.is_dir()), key=str)
  except InputError:
    raise
  except (OSError, RuntimeError, ValueError) as error:  # The name may be too long, say.
    raise InputError(f"data.source {source!r}: {error}. Give another name.") from error
  if not files:
    raise InputError(
      f"data.source {source!r}: no files to read there. Expected {', '.join(SUFFIXES)} files."
    )
  for file in files:
    if not file.is_file():
      raise InputError(
        f"data.source {source!r}: {file} is no file to read (a dangling link, or a device). "
        "Remove it."
      )
    if file.suffix not in SUFFIXES:
      raise InputError(
        f"data.source {source!r}: {file} is of kind {file.suffix or 'no suffix'!r}; expected "
        f"{', '.join(SUFFIXES)}. Rename or convert it."
      )
  return files


def _named(source: str, path: Any) -> Iterable[Any]:
  """The files, and possibly directories, that a source names."""
  if path.is_dir() and isinstance(path, epath.Path):
    return [file for file in path.iterdir() if file.suffix in SUFFIXES]
  if path.is_dir():
    return [
      file
      for suffix in SUFFIXES
      for file in path.rglob(f"*{suffix}")
      if not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
  if path.exists():
    return [path]
  if glob.has_magic(source):
    if isinstance(path, epath.Path):
      fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
      pattern = "/".join(path.parts[fixed:])
      return path.parents[len(path.parts) - fixed - 1].glob(pattern)
    # Parts of the pattern that exist as directories are literal, whatever characters they have.
    fixed = next(place for place in path.parents if place.exists())
    pattern = str(path.relative_to(fixed))
    return (fixed / name for name in glob.glob(pattern, root_dir=fixed, recursive=True))
  raise InputError(
    f"data.source {source!r}: no such file or directory, and not a glob pattern. Give a .txt, "
    ".md or .jsonl file, a directory or pattern of them, or python_docs."
  )


def read_documents(files: Sequence[pathlib.Path], bad: BadRecords) -> Iterator[str]:
  """Yields the documents of the files, in order.

  A line of JSONL is a document: an object with a string under "text". A .txt or .md file is one
  document, unless it is the only file: then a form feed or two blank lines end a document, and
  so does one blank line once a document is longer than 8,192 characters. Documents of white space
  alone are left out.

  Args:
    files: .txt, .md and .jsonl files.
    bad: counts records that are not UTF-8, not JSON, too long, or without text.

  Raises:
    InputError: there are more bad records than `bad` allows, or a file cannot be read.
  """
  for file in files:
    if file.suffix == ".jsonl":
      documents = _read_jsonl(file, bad)
    elif len(files) == 1:
      documents = _read_lone_text(file, bad)
    else:
      documents = _read_whole_text(file, bad)
    yield from (document for document in documents if document.strip())


def _decode(data: bytes) -> tuple[str, str]:
  """Decodes UTF-8; returns (text, "") or ("", why it is not UTF-8)."""
  try:
    return data.decode("utf-8"), ""
  except UnicodeDecodeError as error:
    return "", f"not valid UTF-8 (byte 0x{data[error.start]:02x}: {error.reason})"


def _read_whole_text(file: pathlib.Path, bad: BadRecords) -> Iterator[str]:
  with open_regular(file) as lines:
    data = _without_mark(lines.read(_LONGEST_DOCUMENT + 1))
  if len(data) > _LONGEST_DOCUMENT:
    bad.add(file, 1, _TOO_LONG)
    return
  text, problem = _decode(data)
  if problem:
    lines = data.split(b"\n")
    line = next(number for number, part in enumerate(lines, start=1) if _decode(part)[1])
    bad.add(file, line, problem)
  else:
    yield text


def _read_jsonl(file: pathlib.Path, bad: BadRecords) -> Iterator[str]:
  with open_regular(file) as lines:
    for number, line in _numbered_lines(lines):
      data = _without_mark(line) if number == 1 else line
      if not data.strip():
        continue
      text, problem = "", f"a record of more than {_LONGEST_RECORD} bytes"
      if len(line) <= _LONGEST_RECORD:
        text, problem = _parse_record(data)
      if problem:
        bad.add(file, number, problem)
      else:
        yield text


def _numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
  """Yields (number from 1, line); too long a line is cut one byte above `_LONGEST_DOCUMENT`."""
  number = 0
  while line := file.readline(_LONGEST_DOCUMENT + 1):
    number += 1
    yield number, line
    while len(line) > _LONGEST_DOCUMENT and not line.endswith(b"\n"):
      line = file.readline(_LONGEST_DOCUMENT + 1)


def _parse_record(line: bytes) -> tuple[str, str]:
  text, problem = _decode(line)
  if problem:
    return "", problem
  try:
    record = json.loads(text)
  except json.JSONDecodeError as error:
    return "", f"not valid JSON ({error.msg}, column {error.colno})"
  # Python raises ValueError for an integer with thousands of digits.
  except (RecursionError, ValueError) as error:
    deep = isinstance(error, RecursionError)
    return "", f"JSON {'nested too deeply' if deep else 'with too long a number'}"
  if not isinstance(record, dict) or not isinstance(record.get("text"), str):
    return "", _no_text(record)
  try:
    record["text"].encode("utf-8")
  except UnicodeEncodeError:
    return "", "the text holds half of a surrogate pair, which no UTF-8 can express"
  return record["text"], ""


def _no_text(record: Any) -> str:
  """Says what a record has instead of a string under "text"."""
  expected = 'no string under "text" (found'
  if not isinstance(record, dict):
    return f'{expected} {type(record).__name__}); a line must be an object like {{"text": "..."}}'
  if "text" in record:
    value = json.dumps(record["text"])[:40]
    return f"{expected} {type(record['text']).__name__}, {value}); put quotes around it"
  return f'{expected} keys {sorted(record)}); put the text of the document under "text"'


def _read_lone_text(file: pathlib.Path, bad: BadRecords) -> Iterator[str]:
  parts: list[str] = []
  size, blank_lines, broken = 0, 0, False
  with open_regular(file) as lines:
    for number, line in _numbered_lines(lines):
      text, problem = _decode(_without_mark(line) if number == 1 else line)
      if len(line) > _LONGEST_DOCUMENT:
        text, problem = "", _TOO_LONG
      if problem and not broken:
        bad.add(file, number, problem)
      broken = broken or bool(problem)
      blank_lines = 0 if text.strip() or problem else blank_lines + 1
      before, *after = text.split(_FORM_FEED)
      parts.append(before)
      size += len(before)
      if size > _LONGEST_DOCUMENT and not broken:
        bad.add(file, number, _TOO_LONG)
        broken = True
      if broken:
        parts.clear()
      if not after and (blank_lines >= 2 or (blank_lines and size > _CUT_AFTER_CHARACTERS)):
        after = [""]
      if after:
        if not broken:
          yield _trim("".join(parts))
        yield from map(_trim, after[:-1])
        parts, size, broken = [after[-1]], len(after[-1]), False
  if not broken:
    yield _trim("".join(parts))


def _trim(text: str) -> str:
  """Strips the separators around a document, but not the first line's indentation."""
  return text.lstrip("\r\n").rstrip()


def _without_mark(data: bytes) -> bytes:
  return data.removeprefix(b"\xef\xbb\xbf")
