"""Reading documents out of users' text and JSONL files, bad records counted."""

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
# A lone file longer than this is cut at its next blank line, so that a held-out split can exist.
_CUT_AFTER_CHARACTERS = 8192
_FORM_FEED = "\f"
# Bytes; a file may have any number of such documents. Nobody writes longer ones, but a file without
# line ends is one, and would have to be held in memory.
_LONGEST_DOCUMENT = 2**28
# JSON can take twenty times its size in memory.
_LONGEST_RECORD = 2**26
_TOO_LONG = (
  f"a document of more than {_LONGEST_DOCUMENT} bytes; in a lone .txt or .md file two blank lines "
  "or a form feed end one"
)
_MAX_LOGGED = 10


class BadRecords:
  """Counts records that cannot be used, and gives up when there are more than allowed."""

  def __init__(self, maximum: int) -> None:
    self.maximum = maximum
    self.count = 0

  def add(self, path: pathlib.Path, line: int, problem: str) -> None:
    """Counts one record.

    Raises:
      InputError: when this one is more than allowed.
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
    source: a file, a directory (searched in depth for *.txt, *.md and *.jsonl; hidden files are
      left out), or a glob pattern, unless a file or directory of that very name exists; also in an
      object store, gs://BUCKET/…, where directories are
      not searched in depth.

  Raises:
    InputError: if there is nothing to read, or a file of an unknown kind.
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
  """The files, and perhaps directories, that a source names."""
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
    # Directories that are there are taken by their names, whatever characters those have.
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
  so does one blank line once a document is longer than 8,192 characters. Documents of nothing
  but white space are left out.

  Args:
    files: what to read.
    bad: counts records that are not UTF-8, not JSON, or have no text.

  Raises:
    InputError: by `bad`, when there are too many bad records.
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
  """Decodes UTF-8; returns the text, or what is wrong with it."""
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
  """(number, line) from 1; of one that is too long only as much as shows that."""
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
  # The other ValueError is of an integer with thousands of digits.
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
  """What is wrong with a record that has no string under "text"."""
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
  """Takes the separators off a document, but not the first line's indentation."""
  return text.lstrip("\r\n").rstrip()


def _without_mark(data: bytes) -> bytes:
  return data.removeprefix(b"\xef\xbb\xbf")
