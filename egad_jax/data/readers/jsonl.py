"""Reads .jsonl files: one JSON object a line."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from egad_jax.data.readers import records
from egad_jax.data.readers.records import BadRecord, BadRecords


def read_jsonl(file: pathlib.Path, bad: BadRecords) -> Iterator[tuple[int, Any]]:
  """Yields (line, value) of each line that is not blank.

  Args:
    file: the file, perhaps compressed.
    bad: counts lines that are too long, not UTF-8 or not JSON.
  """
  with records.opened(file) as lines:
    for number, line in records.numbered_lines(lines):
      if not line.strip():
        continue
      try:
        if len(line) > records.LONGEST_RECORD:
          raise BadRecord(f"a record of more than {records.LONGEST_RECORD} bytes")
        value = records.parse_json(records.decode(line))
      except BadRecord as error:
        bad.add(file, number, str(error))
        continue
      yield number, value
