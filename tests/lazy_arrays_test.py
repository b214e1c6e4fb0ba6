"""Tests of arrays that are read slice by slice."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from egad_jax.lazy_arrays import (
  LazyArray,
  assign,
  blocks,
  from_numpy,
  read_all,
  stack,
  with_rows,
)

WHOLE = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize(
  "index", [(), 1, -1, slice(1, 3), (slice(0, 0),), (2, slice(None), 4), (slice(-2, None), 1)]
)
@pytest.mark.parametrize("made", [from_numpy(WHOLE), stack([from_numpy(a) for a in WHOLE])])
def test_indices_are_those_of_numpy(made, index):
  assert (made.shape, len(made), made.ndim, made.nbytes) == (WHOLE.shape, 3, 3, WHOLE.nbytes)
  np.testing.assert_array_equal(made[index], WHOLE[index])
  np.testing.assert_array_equal(made.item(2)[0], WHOLE[2, 0])
  np.testing.assert_array_equal(made, WHOLE)


def test_indices_that_numpy_refuses_too():
  lazy = from_numpy(WHOLE)
  for index in (3, -4, (0, 0, 0, 0), slice(None, None, 2)):
    with pytest.raises(IndexError):
      lazy[index]
  with pytest.raises(ValueError, match="without being read"):
    np.asarray(lazy, copy=False)


def test_only_what_is_asked_for_is_read():
  asked = []
  lazy = LazyArray((3, 4), lambda out, slices: asked.append(slices))
  assert lazy.read((1, slice(2, 4))).shape == (2,)
  assert asked == [(slice(1, 2), slice(2, 4))]
  stack([lazy, lazy]).read((1, slice(0, 1)))
  assert asked[1:] == [(slice(0, 1), slice(0, 4))]
  # The rows that are added need no file.
  with_rows(lazy, 3, 9, 0.0).read(slice(3, 9))
  assert len(asked) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_values_are_rounded_from_float32(dtype):
  values = np.random.default_rng(1).standard_normal(1000).astype(dtype)
  out = np.empty(1000, ml_dtypes.bfloat16)
  assign(out, values)
  np.testing.assert_array_equal(out, values.astype(np.float32).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("row", [0.0, np.arange(5, dtype=np.float32)])
def test_rows_are_cut_and_added(row):
  table = WHOLE[0]
  wanted = np.concatenate([table[:3], np.broadcast_to(row, (4, 5))])
  lazy = with_rows(from_numpy(table), 3, 7, row)
  np.testing.assert_array_equal(lazy, wanted)
  for start, stop in itertools.combinations(range(8), 2):
    np.testing.assert_array_equal(lazy[start:stop, 1:3], wanted[start:stop, 1:3])


@pytest.mark.parametrize("most", [1, 4, 19, 20, 40, 80, 239, 240])
def test_blocks_cover_every_value_once_in_order(most):
  shape = (3, 4, 5)
  seen = np.concatenate([np.ravel(np.arange(60).reshape(shape)[i]) for i in blocks(shape, 4, most)])
  np.testing.assert_array_equal(seen, np.arange(60))
  sizes = [np.size(np.empty(shape)[i]) * 4 for i in blocks(shape, 4, most)]
  assert max(sizes) <= max(most, 4)


def test_trees_are_read_whole():
  tree = {"a": from_numpy(WHOLE), "b": {"c": WHOLE[0]}}
  read = read_all(tree)
  assert type(read["a"]) is np.ndarray
  assert read["b"]["c"] is tree["b"]["c"]
