"""The sums of each held-out row, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest

from egad_jax.training.held_out_rows import by_row


def test_sums_of_a_row_and_of_its_tokens_by_entropy():
  mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
  # NaN where a mask must hide it. The entropies of the four tokens are 1, 2, 3 and 4.
  nan = np.nan
  entropy = np.array([[1, 4, 3, nan], [2, nan, nan, nan], [nan] * 4], np.float32)
  kl = np.array([[10, 20, 30, nan], [40, nan, nan, nan], [nan] * 4], np.float32)
  found = by_row(mask, np.array([7, 5, -1]), entropy, kl, kl + 1)
  assert found["rows"] == [7, 5]
  assert found["tokens"] == [3, 1]
  assert found["forward_kl"] == [60, 40]
  assert found["cross_entropy"] == [63, 41]
  assert found["edges"] == [1.75, 2.5, 3.25]
  assert found["quarter_tokens"] == [[1, 0, 1, 1], [0, 1, 0, 0]]
  assert found["quarter_forward_kl"] == [[10, 0, 30, 20], [0, 40, 0, 0]]


def test_without_a_token_there_is_no_row():
  nothing = np.zeros((2, 3))
  found = by_row(nothing.astype(bool), np.array([0, 1]), nothing, nothing, nothing)
  assert found["rows"] == found["tokens"] == found["forward_kl"] == []
  assert found["edges"] == [0, 0, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_quarters_add_up_to_the_row(seed):
  draw = np.random.default_rng(seed)
  shape = (5, 9)
  mask, values = draw.random(shape) < 0.7, draw.random(shape).astype(np.float32)
  found = by_row(mask, np.arange(5), draw.random(shape), values, values)
  assert np.sum(found["quarter_forward_kl"], axis=1) == pytest.approx(found["forward_kl"])
  assert np.sum(found["quarter_tokens"], axis=1).tolist() == found["tokens"]
  counts = np.sum(found["quarter_tokens"], axis=0)
  assert counts.max() - counts.min() <= 1
