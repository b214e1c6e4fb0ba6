"""What all readers share: bad records, limits, decoding, and files that may be compressed."""

from __future__ import annotations

import contextlib
import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from absl import logging

from egad_jax.data.readers.zst import ZstError, open_zst
from egad_jax.errors import InputError
from egad_jax.files.regular_file import open_regular

# Bytes. Nobody writes longer documents, but a file without line ends is a single one, which would
# have to be held in memory.
LONGEST_DOCUMENT = 2**28
# Bytes of a line of JSON, which can take twenty times its size in memory.
LONGEST_RECORD = 2**26
COMPRESSED = (".gz", ".zst")
_MAX_LOGGED = 10


class BadRecord(ValueError):
  """A record that cannot be used; its text says why, without a full stop."""


class BadRecords:
  """Counts unusable records and raises when there are more than allowed.

  Attributes:
    maximum: number of bad records that are allowed.
    count: number of bad records so far.
    is_quiet: whether nothing is counted, logged or raised.
  """

  def __init__(self, maximum: int, *, count: int = 0, is_quiet: bool = False) -> None:
    """Begins to count.

    Args:
      maximum: number of bad records that are allowed.
      count: number of bad records that were met before.
      is_quiet: whether nothing is counted, logged or raised.
    """
    self.maximum = maximum
    self.count = count
    self.is_quiet = is_quiet

  def add(self, where: object, line: int, problem: str) -> None:
    """Counts one bad record and logs a warning, for the first few.

    Args:
      where: the record's file, or the name of its data set.
      line: the record's line or number, from 1.
      problem: why it cannot be used.

    Raises:
      InputError: there are now more than `maximum`.
    """
    if self.is_quiet:
      return
    self.count += 1
    if self.count > self.maximum:
      raise InputError(
        f"{where}, line {line}: {problem}. It is bad record number {self.count} and "
        f"data.max_bad_records is {self.maximum}: repair the file, or raise data.max_bad_records "
        "to leave such records out."
      )
    if self.count <= _MAX_LOGGED:
      logging.warning("%s, line %d: %s; record left out", where, line, problem)


class Part(NamedTuple):
  """A file or data set that is read from its beginning to its end.

  Attributes:
    name: the path, or the source as it was named, for messages.
    state: what changes with the content, such as size and time of a file; JSON can hold it.
    read: `(bad) -> (line or number from 1, record)` of each record: an object (dict), or text.
  """

  name: str
  state: Any
  read: Callable[[BadRecords], Iterable[tuple[int, Any]]]


def suffix_of(path: pathlib.Path) -> str:
  """The suffix that tells a file's kind, without that of a compression.

  >>> suffix_of(pathlib.Path("a.jsonl.gz")), suffix_of(pathlib.Path("a.txt"))
  ('.jsonl', '.txt')
  """
  return pathlib.PurePath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file for reading, decompressed if its name ends in .gz or .zst.

  Raises:
    InputError: the file cannot be opened; or, while it is read, the compressed data are damaged or
      end too early.
  """
  with contextlib.ExitStack() as stack:
    file: Any = stack.enter_context(open_regular(path))
    if path.suffix == ".gz":
      file = stack.enter_context(gzip.GzipFile(fileobj=file))
    elif path.suffix == ".zst":
      file = stack.enter_context(open_zst(file))
    try:
      yield file
    except EOFError as error:
      raise InputError(
        f"{path}: the compressed data end too early: the file is cut short. Copy it again."
      ) from error
    except (zlib.error, gzip.BadGzipFile, ZstError) as error:
      raise InputError(
        f"{path}: cannot be decompressed ({error}). Copy the file again, or rename it if it is not "
        f"compressed."
      ) from error


def decode(data: bytes) -> str:
  """Decodes UTF-8.

  Raises:
    BadRecord: it is not UTF-8.
  """
  try:
    return data.decode("utf-8")
  except UnicodeDecodeError as error:
    raise BadRecord(f"not valid UTF-8 (byte 0x{data[error.start]:02x}: {error.reason})") from error


def without_mark(data: bytes) -> bytes:
  """The bytes without a byte-order mark in front."""
  return data.removeprefix(b"\xef\xbb\xbf")


def numbered_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
  """Yields (number from 1, line); too long a line is cut one byte above `LONGEST_DOCUMENT`."""
  number = 0
  while line := file.readline(LONGEST_DOCUMENT + 1):
    number += 1
    yield number, without_mark(line) if number == 1 else line
    while len(line) > LONGEST_DOCUMENT and not line.endswith(b"\n"):
      line = file.readline(LONGEST_DOCUMENT + 1)


def parse_json(text: str) -> Any:
  """Parses JSON.

  Raises:
    BadRecord: it is no JSON, is nested too deeply, or holds too long a number.
  """
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise BadRecord(f"not valid JSON ({error.msg}, column {error.colno})") from error
  # Python raises ValueError for an integer with thousands of digits.
  except (RecursionError, ValueError) as error:
    deep = isinstance(error, RecursionError)
    raise BadRecord(f"JSON {'nested too deeply' if deep else 'with too long a number'}") from error


def string(record: Any, key: str, hint: str = "") -> str:
  """The string under a key of a record.

  Args:
    record: the record, which may be of any type.
    key: the key.
    hint: what to do if there is no such key; "" for the usual words.

  Raises:
    BadRecord: the record is no object, has no string there, or one that no UTF-8 can express.
  """
  expected = f'no string under "{key}" (found'
  if not isinstance(record, dict):
    raise BadRecord(
      f'{expected} {type(record).__name__}); a record must be an object like {{"{key}": "..."}}'
    )
  if key not in record:
    names = sorted(map(str, record))
    hint = hint or f'put the text under "{key}", or name its key in data.fields'
    raise BadRecord(f"{expected} keys {names}); {hint}")
  value = record[key]
  if not isinstance(value, str):
    raise BadRecord(f"{expected} {type(value).__name__}, {shown(value)}); put quotes around it")
  check_text(value)
  return value


def shown(value: Any) -> str:
  """The first characters of a value as JSON."""
  try:
    return json.dumps(value, default=str)[:40]
  except (RecursionError, ValueError):  # It is nested too deeply.
    return "…"


def check_text(text: str) -> None:
  """Checks that a text can be stored.

  Raises:
    BadRecord: it holds half of a surrogate pair.
  """
  # Quick for almost all texts: those that are not ASCII are encoded.
  if not text.isascii():
    try:
      text.encode("utf-8")
    except UnicodeEncodeError as error:
      raise BadRecord(
        "the text holds half of a surrogate pair, which no UTF-8 can express"
      ) from error
