"""Batches: pure in (seed, i), sliced by process, empty where a record is damaged."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from egad_jax.data import packed_rows, packing, pipeline
from egad_jax.data.batches import AnyBatch, Batch, PairedBatch
from egad_jax.errors import InputError

_BATCH = 4


def _take(rows: packed_rows.Rows, count: int, **changes) -> list[AnyBatch]:
  arguments = {"batch_size": _BATCH, "seed": 0} | changes
  return list(itertools.islice(pipeline.train_batches(rows, **arguments), count))


def _row_keys(found: list[Batch]) -> list[bytes]:
  return [row.tobytes() for batch in found for row in batch.tokens]


def _assert_equal(one: list[AnyBatch], two: list[AnyBatch]) -> None:
  assert len(one) == len(two)
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_shapes_and_types(rows):
  batch = _take(rows, 1)[0]
  assert {field.shape for field in batch[:5]} == {(_BATCH, rows.seq_len)}
  assert [field.dtype for field in batch[:5]] == [np.int32] * 4 + [np.bool_]
  assert not batch.labels[~batch.mask].any()


def test_rows_know_their_numbers_in_every_epoch(rows):
  source = pipeline.RowSource(rows, "train")
  batches = _take(rows, 2 * rows.train_size // _BATCH + 1)
  numbers = np.concatenate([batch.row_numbers for batch in batches])
  assert numbers.dtype == np.int32
  for epoch in (0, 1):
    start = epoch * rows.train_size
    assert sorted(numbers[start : start + rows.train_size]) == list(range(rows.train_size))
  for number, tokens in zip(batches[0].row_numbers, batches[0].tokens, strict=True):
    np.testing.assert_array_equal(source[int(number)].tokens, tokens)


def test_a_batch_is_a_function_of_seed_and_number(rows):
  everything = _take(rows, 2 * rows.train_size // _BATCH)
  _assert_equal(_take(rows, 5, start_step=3), everything[3:8])
  for index in (0, 7, len(everything) - 1):
    _assert_equal(
      [pipeline.train_batch(rows, index, batch_size=_BATCH, seed=0)], [everything[index]]
    )
  assert _row_keys(_take(rows, 3, seed=1)) != _row_keys(everything[:3])


def test_every_epoch_has_every_row_once_in_a_new_order(rows):
  size = rows.train_size
  keys = _row_keys(_take(rows, 3 * size // _BATCH + 1))
  first, second = keys[:size], keys[size : 2 * size]
  source = pipeline.RowSource(rows, "train")
  wanted = collections.Counter(source[i].tokens.tobytes() for i in range(size))
  assert collections.Counter(first) == collections.Counter(second) == wanted
  assert first != second


def test_a_batch_may_be_larger_than_the_corpus(rows):
  size = rows.train_size
  batch = _take(rows, 1, batch_size=2 * size + 1)[0]
  assert batch.tokens.shape == (2 * size + 1, rows.seq_len)


@pytest.mark.parametrize("part", [[0, 1], [3], [0, 3], [0, 1, 2, 3]])
def test_a_part_has_those_rows_of_the_same_batches(rows, part):
  wanted = [jax.tree.map(lambda x: x[part], batch) for batch in _take(rows, 3)]
  _assert_equal(_take(rows, 3, part=part), wanted)


def test_a_batch_has_rows(rows):
  with pytest.raises(InputError, match="batch_size must be positive; got 0"):
    pipeline.train_batches(rows, batch_size=0, seed=0)
  with pytest.raises(InputError, match="batch_size must be positive; got 0"):
    pipeline.held_out_batches(rows, batch_size=0)


def test_held_out_rows_all_once_and_padded_with_empty_rows(rows):
  batch_size = rows.held_out_size - 1
  found = pipeline.held_out_batches(rows, batch_size=batch_size)
  assert len(found) == 2
  assert {batch.tokens.shape for batch in found} == {(batch_size, rows.seq_len)}
  source = pipeline.RowSource(rows, "held_out")
  wanted = collections.Counter(source[i].tokens.tobytes() for i in range(len(source)))
  real = _row_keys(found)[: rows.held_out_size]
  assert collections.Counter(real) == wanted
  assert not found[1].mask[1:].any()
  assert sum(batch.mask.sum() for batch in found) == rows.num_targets["held_out"]


def test_held_out_can_be_cut_short_and_sliced(rows):
  everything = pipeline.held_out_batches(rows, batch_size=2)
  _assert_equal(
    pipeline.held_out_batches(rows, batch_size=2, max_tokens=4 * rows.seq_len), everything[:2]
  )
  least = pipeline.held_out_batches(rows, batch_size=2, max_tokens=1)
  assert least[0].mask[0].any()
  assert not least[0].mask[1].any()
  second = pipeline.held_out_batches(rows, batch_size=2, part=[1])
  np.testing.assert_array_equal(second[0].tokens, everything[0].tokens[1:])


@pytest.fixture
def damaged_rows(small_corpus, tokenizer, tmp_path) -> tuple[packed_rows.Rows, int]:
  """Rows with one byte of one record changed on disk, and that row's number."""
  rows = packing.prepare_rows(small_corpus, tokenizer, seq_len=512, directory=tmp_path)
  path = rows.files["train"][0]
  before = [pipeline.RowSource(rows, "train")[i].mask.any() for i in range(rows.train_size)]
  data = bytearray(path.read_bytes())
  # Riegeli's header takes the first 64 bytes; records follow.
  data[200] ^= 1
  path.write_bytes(bytes(data))
  reopened = packed_rows.open_rows(rows.directory)
  source = pipeline.RowSource(reopened, "train")
  broken = [i for i in range(len(source)) if before[i] and not source[i].mask.any()]
  assert len(broken) == 1
  return reopened, broken[0]


def test_a_damaged_record_is_an_empty_row_and_moves_nothing(
  damaged_rows, small_corpus, tokenizer, tmp_path, caplog
):
  rows, broken = damaged_rows
  whole = packing.prepare_rows(small_corpus, tokenizer, seq_len=512, directory=tmp_path / "whole")
  good_key = pipeline.RowSource(whole, "train")[broken].tokens.tobytes()
  caplog.clear()
  for found, wanted in zip(_take(rows, 6), _take(whole, 6), strict=True):
    for row in range(_BATCH):
      if wanted.tokens[row].tobytes() == good_key:
        assert not found.mask[row].any()
        assert not found.segment_ids[row].any()
      else:
        np.testing.assert_array_equal(found.tokens[row], wanted.tokens[row])
        np.testing.assert_array_equal(found.mask[row], wanted.mask[row])
  assert f"row {broken} cannot be read" in caplog.text


def test_a_record_of_another_size_is_an_empty_row(rows, tmp_path):
  broken = dataclasses.replace(rows, seq_len=rows.seq_len - 1)
  assert not pipeline.RowSource(broken, "train")[0].mask.any()


def test_paired_batches_are_a_function_of_seed_and_number(paired_rows):
  everything = _take(paired_rows, 2 * paired_rows.train_size // _BATCH)
  for batch in everything:
    assert isinstance(batch, PairedBatch)
    *fields, numbers = jax.tree.leaves(batch)
    assert {x.shape for x in fields} == {(_BATCH, paired_rows.seq_len)}
    dtypes = [x.dtype for x in fields]
    assert dtypes == [*([np.int32] * 4 + [np.bool_]) * 2, np.int32, np.int32]
    assert (numbers.shape, numbers.dtype) == ((_BATCH,), np.int32)
  _assert_equal(_take(paired_rows, 5, start_step=3), everything[3:8])
  for index in (0, len(everything) - 1):
    one = pipeline.train_batch(paired_rows, index, batch_size=_BATCH, seed=0)
    _assert_equal([one], [everything[index]])
  assert _row_keys([b.teacher for b in _take(paired_rows, 3, seed=1)]) != _row_keys(
    [b.teacher for b in everything[:3]]
  )


def test_paired_epochs_keep_the_sides_of_a_row_together(paired_rows):
  size = paired_rows.train_size
  batches = _take(paired_rows, 2 * size // _BATCH + 1)
  keys = list(zip(*(_row_keys([b[i] for b in batches]) for i in (0, 1)), strict=True))
  source = pipeline.RowSource(paired_rows, "train")
  wanted = collections.Counter(
    (source[i].student.tokens.tobytes(), source[i].teacher.tokens.tobytes()) for i in range(size)
  )
  assert collections.Counter(keys[:size]) == collections.Counter(keys[size : 2 * size]) == wanted


def test_paired_held_out_rows_are_padded_with_empty_rows(paired_rows):
  found = pipeline.held_out_batches(paired_rows, batch_size=paired_rows.held_out_size - 1)
  assert len(found) == 2
  assert sum(b.student.mask.sum() for b in found) == paired_rows.num_targets["held_out"]
  assert found[1].row_numbers[1:].tolist() == [-1] * (len(found[1].row_numbers) - 1)
  for leaf in jax.tree.leaves(found[1]._replace(row_numbers=())):
    assert not leaf[1:].any()
  parts = [pipeline.held_out_batches(paired_rows, batch_size=2, part=[i])[0] for i in (0, 1)]
  joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  _assert_equal([joined], pipeline.held_out_batches(paired_rows, batch_size=2)[:1])


def test_a_paired_record_of_another_size_is_an_empty_row(paired_rows):
  broken = dataclasses.replace(paired_rows, seq_len=paired_rows.seq_len - 1)
  row = pipeline.RowSource(broken, "train")[0]
  assert isinstance(row, PairedBatch)
  assert row.row_numbers == 0
  assert not any(leaf.any() for leaf in jax.tree.leaves(row._replace(row_numbers=())))
