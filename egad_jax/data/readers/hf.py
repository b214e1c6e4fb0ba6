"""Reads data sets of the package datasets: hf:NAME[@REVISION][#[CONFIGURATION/]SPLIT]."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from egad_jax.data.readers.records import BadRecords, Part
from egad_jax.errors import InputError
from egad_jax.files import paths

_NAME = re.compile(
  r"(?P<name>[^@#]+)(@(?P<revision>[^#]+))?(#((?P<config>[^/]+)/)?(?P<split>[^/]+))?"
)
_ROWS_AT_ONCE = 256


def open_hf(source: str) -> Part:
  """Opens a data set; its rows stay on the disk and are read in turn.

  Args:
    source: `hf:NAME[@REVISION][#[CONFIGURATION/]SPLIT]`. NAME is a directory, saved by
      `save_to_disk` or with files of a data set, or a name in the hub, which is downloaded into the
      package's cache or, under `HF_HUB_OFFLINE=1`, only taken from it. SPLIT is "train" if not
      given.

  Raises:
    InputError: the package is missing, or cannot give that data set.
  """
  found = _NAME.fullmatch(source.removeprefix("hf:"))
  if not found:
    raise InputError(
      f"data.source {source!r}: expected hf:NAME[@REVISION][#[CONFIGURATION/]SPLIT], like "
      "hf:allenai/c4@main#en/train."
    )
  try:
    import datasets
  except ImportError as error:
    raise InputError(
      f"data.source {source!r}: needs the Python package datasets, which is not installed. "
      "pip install datasets, or give files."
    ) from error
  datasets.disable_progress_bars()
  try:
    rows = _load(datasets, **found.groupdict())
  # The package has error classes of its own, and passes on those of others.
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    raise InputError(
      f"data.source {source!r}: {reason}. Check name, revision and split; without a network, give "
      "the directory of a copy."
    ) from error
  return Part(source, [rows._fingerprint, len(rows)], lambda bad: _rows(rows, bad))


def _load(
  datasets: Any, name: str, revision: str | None, config: str | None, split: str | None
) -> Any:
  split = split or "train"
  directory = pathlib.Path(paths.expand(name, "data.source"))
  if directory.is_dir():
    saved = any((directory / f).exists() for f in ("state.json", "dataset_dict.json"))
    if saved:
      loaded = datasets.load_from_disk(str(directory))
      return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    name = str(directory)
  return datasets.load_dataset(name, config, split=split, revision=revision)


def _rows(rows: Any, bad: BadRecords) -> Iterator[tuple[int, Any]]:
  del bad
  number = 0
  for batch in rows.iter(batch_size=_ROWS_AT_ONCE):
    for values in zip(*batch.values(), strict=True):
      number += 1
      yield number, dict(zip(batch, values, strict=True))
