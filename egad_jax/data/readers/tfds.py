"""Reads data sets of the package tensorflow-datasets: tfds:NAME[#SPLIT]."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

from egad_jax.data.readers.records import BadRecords, Part
from egad_jax.errors import InputError
from egad_jax.files import paths


def open_tfds(source: str) -> Part:
  """Opens a prepared data set in ArrayRecord files; its records are read in turn.

  Args:
    source: `tfds:NAME[#SPLIT]`. NAME is a directory with dataset_info.json, or a name that the
      package can prepare in its own data directory. SPLIT is "train" if not given, and may be a
      part of one, such as "train[:10%]".

  Raises:
    InputError: the package is missing, or cannot give that data set.
  """
  name, _, split = source.removeprefix("tfds:").partition("#")
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise InputError(
      f"data.source {source!r}: needs the Python package tensorflow-datasets, which is not "
      "installed. pip install tensorflow-datasets, or give files."
    ) from error
  tfds.disable_progress_bar()
  directory = paths.expand(name, "data.source")
  try:
    # The package prints, but standard output is for the commands' results.
    with contextlib.redirect_stdout(io.StringIO()):
      if os.path.isdir(directory):
        builder = tfds.builder_from_directory(directory)
      else:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
      records = builder.as_data_source(split or "train")
  # The package and its builders raise errors of any class.
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    raise InputError(
      f"data.source {source!r}: {reason}. Check name and split; without TensorFlow only "
      "directories that hold a prepared data set in ArrayRecord files can be read."
    ) from error
  state = [builder.info.full_name, split, len(records), str(builder.data_dir)]
  return Part(source, state, lambda bad: _records(source, records, bad))


def _records(source: str, records: Any, bad: BadRecords) -> Iterator[tuple[int, Any]]:
  for number in range(1, len(records) + 1):
    try:
      record = _as_json(records[number - 1])
    # ArrayRecord raises RuntimeError for damage.
    except (RuntimeError, UnicodeDecodeError) as error:
      bad.add(source, number, str(error).split("\n", 1)[0][:200])
      continue
    yield number, record


def _as_json(value: Any) -> Any:
  """The value with strings for bytes, lists for arrays, and objects for a sequence's columns."""
  if isinstance(value, bytes):
    return value.decode()
  if hasattr(value, "tolist"):
    return _as_json(value.tolist())
  if isinstance(value, list | tuple):
    return [_as_json(item) for item in value]
  if isinstance(value, Mapping):
    columns = {key: _as_json(item) for key, item in value.items()}
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    # A sequence of objects comes as an object of sequences.
    if len(lengths) == 1 and -1 not in lengths and not {"messages", "prompt"} & columns.keys():
      return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return columns
  return value
