"""Batches of packed rows: batch i is a pure function of (seed, i)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import logging
from array_record.python import array_record_data_source

from egad_jax.data import batches
from egad_jax.data.batches import AnyBatch
from egad_jax.data.corpus import HELD_OUT, TRAIN
from egad_jax.data.packed_rows import Rows, decode_record
from egad_jax.errors import InputError

# Constant, so that every run, whatever its seed, is evaluated on the same rows.
_HELD_OUT_SEED = 0
_THREADS = 2
_BATCHES_AHEAD = 4


class RowSource:
  """Random access to the rows of one split, each a `Batch` or `PairedBatch` of [seq_len] fields."""

  def __init__(self, rows: Rows, split: str) -> None:
    self._shape = {"sides": rows.sides, "seq_len": rows.seq_len}
    self._name = f"{rows.directory.name}/{split}"
    self._records = array_record_data_source.ArrayRecordDataSource(
      [str(path) for path in rows.files[split]]
    )

  def __len__(self) -> int:
    return len(self._records)

  def __repr__(self) -> str:
    return f"RowSource({self._name}, {len(self)} rows)"

  def __getitem__(self, index: int) -> AnyBatch:
    """Reads a row; a damaged one is logged and read as padding, so that no other row moves."""
    try:
      return batches.make_row(decode_record(self._records[index], **self._shape), index)
    # ArrayRecord raises RuntimeError for damage; ValueError comes from a record of another size.
    except (RuntimeError, ValueError) as error:
      logging.error(
        "%s: row %d cannot be read, its place stays empty: %s", self._name, index, error
      )
      return batches.empty_row(**self._shape)._replace(row_numbers=np.int32(index))


class TrainData:
  """The endless sequence of train batches, by number.

  Global batch i holds rows i·batch_size up to (i+1)·batch_size of the endless sequence of epochs,
  each a new permutation of all rows. A process reads only the rows that its devices hold, so the
  data of a step depend neither on the number of processes nor on the step at which a run resumes.
  """

  def __init__(
    self, rows: Rows, *, batch_size: int, seed: int, part: Sequence[int] | None = None
  ) -> None:
    """Opens the rows.

    Args:
      rows: the packed rows.
      batch_size: number of rows of a global batch, at least 1.
      seed: seed of the permutations.
      part: indices of the rows of each global batch that are read; None reads all.

    Raises:
      InputError: `batch_size` is not positive.
    """
    self._batch_size = batch_size
    self._part = _checked_part(batch_size, part)
    source = grain.MapDataset.source(RowSource(rows, TRAIN))
    self._rows = source.shuffle(seed=seed).repeat(None, reseed_each_epoch=True)

  def batch(self, index: int) -> AnyBatch:
    """The part of global batch `index` that is read: fields of [rows of the part, seq]."""
    start = index * self._batch_size
    return batches.stack([self._rows[start + row] for row in self._part])

  def iterate(self, start_step: int = 0) -> Iterator[AnyBatch]:
    """Yields batches `start_step`, `start_step + 1`, … without end, read ahead by threads."""
    numbers = grain.MapDataset.range(start_step, sys.maxsize)
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(numbers.map(self.batch).to_iter_dataset(options))


def train_batches(
  rows: Rows,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  part: Sequence[int] | None = None,
) -> Iterator[AnyBatch]:
  """Yields train batches `start_step`, …, or a part of each; the arguments are `TrainData`'s.

  Raises:
    InputError: `batch_size` is not positive.
  """
  return TrainData(rows, batch_size=batch_size, seed=seed, part=part).iterate(start_step)


def train_batch(
  rows: Rows,
  index: int,
  *,
  batch_size: int,
  seed: int,
  part: Sequence[int] | None = None,
) -> AnyBatch:
  """One train batch by its number, as `train_batches` yields it; the arguments are `TrainData`'s.

  Raises:
    InputError: `batch_size` is not positive.
  """
  return TrainData(rows, batch_size=batch_size, seed=seed, part=part).batch(index)


def held_out_batches(
  rows: Rows,
  *,
  batch_size: int,
  max_tokens: int | None = None,
  part: Sequence[int] | None = None,
) -> list[AnyBatch]:
  """The held-out rows, the same for every run and seed; empty rows fill the last batch.

  Args:
    rows: the packed rows.
    batch_size: number of rows of a global batch, at least 1.
    max_tokens: limits the rows to `max_tokens // seq_len`, but at least one; None takes all.
    part: indices of the rows of each global batch that are read; None reads all.

  Returns:
    Batches with fields of [rows of the part, seq].

  Raises:
    InputError: `batch_size` is not positive.
  """
  part = _checked_part(batch_size, part)
  source = grain.MapDataset.source(RowSource(rows, HELD_OUT)).shuffle(seed=_HELD_OUT_SEED)
  size = _held_out_size(rows, max_tokens)
  empty = functools.partial(batches.empty_row, rows.seq_len, sides=rows.sides)
  return [
    batches.stack([source[start + i] if start + i < size else empty() for i in part])
    for start in range(0, size, batch_size)
  ]


def held_out_bytes(rows: Rows, *, max_tokens: int | None = None) -> int:
  """The bytes of text that all targets of `held_out_batches` stand for, in all parts together."""
  source = grain.MapDataset.source(rows.held_out_bytes).shuffle(seed=_HELD_OUT_SEED)
  return sum(source[i] for i in range(_held_out_size(rows, max_tokens)))


def _held_out_size(rows: Rows, max_tokens: int | None) -> int:
  if max_tokens is None:
    return rows.held_out_size
  return min(rows.held_out_size, max(1, max_tokens // rows.seq_len))


def _checked_part(batch_size: int, part: Sequence[int] | None) -> Sequence[int]:
  if batch_size < 1:
    raise InputError(f"batch_size must be positive; got {batch_size}.")
  return range(batch_size) if part is None else part
