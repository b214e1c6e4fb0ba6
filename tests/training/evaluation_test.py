"""Averages of an evaluation that are no numbers, and those that are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from egad_jax.training.evaluation import BINNED, NUM_BINS, evaluate


def sums(**changes):
  """Sums of one batch of ten tokens, 20 bytes in all, at two nats a token."""
  values = {"count": 10.0, "tokens": 10.0, "teacher_tokens": 10.0, "bytes": 20.0}
  values |= {"cross_entropy": 20.0, "teacher_cross_entropy": 10.0, "forward_kl": 5.0}
  values |= {"agreement": 4.0, "student_entropy": 30.0, "teacher_entropy": 10.0}
  values |= {name: np.zeros(NUM_BINS) for name in ("bin_count", *(f"bin_{n}" for n in BINNED))}
  return {name: np.float64(value) for name, value in (values | changes).items()}


def student(**changes):
  result = evaluate(lambda batch: sums(**changes), [None], vocab_size=100, num_bytes=20)
  json.dumps(result, allow_nan=False)
  return result["student"]


def test_averages_by_hand():
  assert student() == {
    "cross_entropy": 2.0,
    "perplexity": pytest.approx(math.e**2),
    "bits_per_byte": pytest.approx(1 / math.log(2)),
    "forward_kl": 0.5,
    "agreement": 0.4,
    "entropy": 3.0,
  }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_none(value):
  found = student(cross_entropy=value, forward_kl=value)
  expected = 0.0 if value == -math.inf else None
  assert found["perplexity"] == expected
  for key in ("cross_entropy", "bits_per_byte", "forward_kl"):
    assert found[key] is None
  assert found["agreement"] == 0.4


@pytest.mark.parametrize(
  ("nats", "finite"), [(700, True), (708.9, True), (709.9, False), (1e30, False)]
)
def test_a_perplexity_that_no_float_holds_is_none(nats, finite):
  found = student(cross_entropy=nats * 10)
  assert found["cross_entropy"] == pytest.approx(nats)
  assert (found["perplexity"] is not None) == finite
