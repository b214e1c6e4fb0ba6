"""The label shift and empty rows."""

from __future__ import annotations

import numpy as np

from egad_jax.data import batches

_TOKENS = np.array([5, 6, 7, 8, 9, 0, 0], np.int32)
_SEGMENTS = np.array([1, 1, 1, 2, 2, 0, 0], np.int32)
_POSITIONS = np.array([0, 1, 2, 0, 1, 0, 0], np.int32)


def test_labels_are_the_next_tokens_of_the_same_segment():
  batch = batches.shift(_TOKENS, _SEGMENTS, _POSITIONS, np.ones(7, np.int32))
  np.testing.assert_array_equal(batch.tokens, [5, 6, 7, 8, 9, 0])
  np.testing.assert_array_equal(batch.mask, [True, True, False, True, False, False])
  np.testing.assert_array_equal(batch.labels, [6, 7, 0, 9, 0, 0])
  np.testing.assert_array_equal(batch.segment_ids, [1, 1, 1, 2, 2, 0])
  np.testing.assert_array_equal(batch.positions, [0, 1, 2, 0, 1, 0])


def test_tokens_that_are_no_targets_are_masked_as_labels():
  targets = np.array([1, 1, 0, 1, 1, 1, 1], np.int32)
  batch = batches.shift(_TOKENS, _SEGMENTS, _POSITIONS, targets)
  np.testing.assert_array_equal(batch.mask, [True, False, False, True, False, False])
  np.testing.assert_array_equal(batch.labels, [6, 0, 0, 9, 0, 0])


def test_dtypes():
  batch = batches.shift(_TOKENS, _SEGMENTS, _POSITIONS, np.ones(7, np.int32))
  for one in (batch, batches.empty_row(6)):
    assert [field.dtype for field in one[:5]] == [np.int32] * 4 + [np.bool_]
    assert {field.shape for field in one[:5]} == {(6,)}
  assert batches.empty_row(6).row_numbers.dtype == np.int32


def test_padding_never_counts():
  batch = batches.shift(_TOKENS, np.zeros(7, np.int32), _POSITIONS, np.ones(7, np.int32))
  assert not batch.mask.any()
  assert not batches.empty_row(6).mask.any()


def test_stack_keeps_rows_in_order():
  row = batches.shift(_TOKENS, _SEGMENTS, _POSITIONS, np.ones(7, np.int32))
  stacked = batches.stack([batches.empty_row(6), row._replace(row_numbers=np.int32(3))])
  assert (stacked.row_numbers.tolist(), stacked.attached) == ([-1, 3], ())
  np.testing.assert_array_equal(stacked.tokens, [[0] * 6, [5, 6, 7, 8, 9, 0]])
  assert stacked.mask.shape == (2, 6)
