"""Reads .parquet files."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from egad_jax.data.readers.records import BadRecords
from egad_jax.errors import InputError
from egad_jax.files.regular_file import open_regular

_ROWS_AT_ONCE = 256


def read_parquet(file: pathlib.Path, bad: BadRecords) -> Iterator[tuple[int, Any]]:
  """Yields (number from 1, row as an object) of each row.

  Args:
    file: the file. Parquet compresses by itself.
    bad: not used: a row is whole, or the file is damaged.

  Raises:
    InputError: pyarrow is missing, or the file is damaged.
  """
  del bad
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise InputError(f"{file}: reading it needs pyarrow: pip install pyarrow.") from error
  number = 0
  with open_regular(file) as content:
    try:
      rows = pyarrow.parquet.ParquetFile(content, page_checksum_verification=True)
      for batch in rows.iter_batches(batch_size=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
          number += 1
          yield number, row
    # Damage shows as ArrowInvalid, a ValueError, or as OSError.
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
      reason = str(error).split("\n", 1)[0][:200]
      raise InputError(
        f"{file}: cannot be read behind row {number} ({reason}). Copy the file again."
      ) from error
