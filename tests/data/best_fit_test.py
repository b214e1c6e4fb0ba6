"""The rows are those of grain's packer, bit for bit."""

from __future__ import annotations

import grain
import numpy as np
import pytest

from egad_jax.data.best_fit import OpenRows

_LENGTH, _ROWS = 20, 8


def _pieces(sides, extra, count, seed=0):
  generator = np.random.default_rng(seed)
  pieces = []
  for _ in range(count):
    piece = {}
    for side in sides:
      size = generator.choice([1, 3, 9, 20]) if seed else generator.integers(1, _LENGTH + 1)
      piece[side] = generator.integers(1, 1000, size).astype(np.int32)
      piece[f"{side}_targets"] = generator.integers(0, 3, size).astype(np.int32)
    for name in extra:
      piece[name] = generator.integers(0, 9, len(piece[sides[0]])).astype(np.int32)
    pieces.append(piece)
  return pieces


def _by_grain(pieces, sides, extra):
  """[rows, sides, 4, length] and [rows, extra, length], as the data set of grain gives them."""
  meta = (*(f"{side}_targets" for side in sides), *extra)
  packed = grain.experimental.BestFitPackIterDataset(
    grain.MapDataset.source(pieces).to_iter_dataset(),
    length_struct=dict.fromkeys((*sides, *meta), _LENGTH),
    num_packing_bins=_ROWS,
    shuffle_bins=False,
    meta_features=meta,
  )
  rows = list(packed)
  ends = ("", "_segment_ids", "_positions", "_targets")
  fields = [[[row[f"{side}{end}"] for end in ends] for side in sides] for row in rows]
  return np.array(fields), np.array([[row[name] for name in extra] for row in rows])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
  ("sides", "extra"),
  [(["a"], []), (["a"], ["bytes"]), (["a", "b"], []), (["a", "b"], ["bytes"])],
)
def test_rows_are_those_of_grain(sides, extra, seed):
  pieces = _pieces(sides, extra, 150, seed)
  rows = OpenRows(_ROWS, _LENGTH, sides, extra)
  taken = []
  for piece in pieces:
    if not rows.add(piece):
      taken.append(rows.take())
      assert rows.add(piece)
  taken.append(rows.take())
  fields, extras = (np.concatenate(column) for column in zip(*taken, strict=True))
  expected, expected_extras = _by_grain(pieces, sides, extra)
  assert len(expected) > 3 * _ROWS
  np.testing.assert_array_equal(fields, expected)
  np.testing.assert_array_equal(extras.ravel(), expected_extras.ravel())


def test_a_piece_that_is_too_long_is_refused():
  rows = OpenRows(_ROWS, _LENGTH, ["a"], [])
  long = np.ones(_LENGTH + 1, np.int32)
  with pytest.raises(ValueError, match="21 tokens does not fit into 20"):
    rows.add({"a": long, "a_targets": long})


def test_nothing_is_no_row():
  fields, extras = OpenRows(_ROWS, _LENGTH, ["a"], ["b"]).take()
  assert (fields.shape, extras.shape) == ((0, 1, 4, _LENGTH), (0, 1, _LENGTH))
