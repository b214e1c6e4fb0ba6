"""A run's .jsonl file: one record per line, ascending in step, on a disk or in an object store."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from egad_jax.files.regular_file import open_regular
from egad_jax.files.storage import finite_or_none, is_local, write_text

_LOG = logging.getLogger(__name__)
# Seconds for which lines are collected before an upload: object stores only write whole objects.
_UPLOAD_SECONDS = 30.0
# Bytes of a line that are read at most; a record has about a thousandth of that.
_LONGEST_LINE = 2**20


def read_jsonl(path: epath.Path) -> list[dict[str, Any]]:
  """The records of a .jsonl file, up to the first line that is no record.

  A killed process may have left such a line unfinished. A missing file has no records.

  Raises:
    InputError: the path is not a file, or cannot be read.
  """
  records: list[dict[str, Any]] = []
  if not path.exists():
    return records
  with open_regular(path) as file:
    while line := file.readline(_LONGEST_LINE):
      try:
        record = json.loads(line)
      except (ValueError, RecursionError):
        break
      if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        break
      records.append(record)
  return records


class JsonlLog:
  """Appends records to a .jsonl file. On a full disk they wait until there is room.

  Attributes:
    last: the record of the highest step; None if there is none.
  """

  def __init__(self, path: epath.Path, *, last_step: int, writes: bool = True):
    """Cuts the file back to the records of steps up to `last_step`.

    Args:
      path: path of the .jsonl file; it is created if absent.
      last_step: step of the state from which the run resumes; 0 for a new run.
      writes: whether this process writes the file; otherwise it only reads it.
    """
    self._path, self._writes, self._local = path, writes, is_local(path)
    records = [r for r in read_jsonl(path) if r["step"] <= last_step]
    self.last = records[-1] if records else None
    self._text = "".join(json.dumps(record) + "\n" for record in records)
    self._written, self._waiting = len(self._text.encode()), ""
    self._failing, self._uploaded = False, time.monotonic()
    if writes:
      write_text(path, self._text)
    if self._local:
      self._text = ""  # A disk can append, so that the earlier lines are not needed any more.

  def append(self, record: Mapping[str, Any]) -> None:
    """Adds one record with an integer "step"; numbers that are not finite become null."""
    self.last = finite_or_none(record)
    if not self._writes:
      return
    self._waiting += json.dumps(self.last) + "\n"
    if self._local or time.monotonic() - self._uploaded >= _UPLOAD_SECONDS:
      self.sync()

  def sync(self) -> None:
    """Writes the records that wait; if that fails, logs the error once and keeps them."""
    if not self._waiting:
      return
    try:
      if self._local:
        data = self._waiting.encode()
        self._extend(data)
        self._written += len(data)
      else:
        write_text(self._path, self._text + self._waiting)
        self._text += self._waiting
      self._waiting, self._failing, self._uploaded = "", False, time.monotonic()
    except OSError as error:
      if not self._failing:
        _LOG.error("%s cannot be written (%s); it is tried again", self._path, error.strerror)
      self._failing = True

  def _extend(self, data: bytes) -> None:
    with pathlib.Path(self._path).open("r+b") as file:
      # A failed attempt may have left part of a line, which is overwritten.
      file.seek(self._written)
      file.truncate()
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
