"""Batches by their step: packed rows ignore the state, a source that reads it gets it in time."""

from __future__ import annotations

import itertools
import types

import numpy as np

from egad_jax.data import pipeline
from egad_jax.training.batch_source import PackedRows, StateReader


class Counting(StateReader):
  def batch(self, step, state, part=None):
    return np.array([step, state.step, *(part or ())])


def test_a_source_that_reads_the_state_gets_the_one_of_its_step():
  state = types.SimpleNamespace(step=7)
  batches = Counting().stream(7, lambda: state, (4,))
  for step in range(7, 10):
    np.testing.assert_array_equal(next(batches), [step, step, 4])
    state = types.SimpleNamespace(step=step + 1)


def test_packed_rows_are_the_same_whenever_they_are_asked_for(monkeypatch):
  asked = []

  def one(rows, index, **order):
    asked.append(("one", rows, index, order))
    return index

  def many(rows, *, start_step, **order):
    asked.append(("many", rows, start_step, order))
    return itertools.count(start_step)

  monkeypatch.setattr(pipeline, "train_batch", one)
  monkeypatch.setattr(pipeline, "train_batches", many)
  source = PackedRows("rows", batch_size=4, seed=3)
  stream = source.stream(5, lambda: None, (0, 1))
  assert [next(stream), source.batch(5, None)] == [5, 5]
  order = {"batch_size": 4, "seed": 3}
  assert asked == [
    ("many", "rows", 5, order | {"part": (0, 1)}),
    ("one", "rows", 5, order | {"part": None}),
  ]
  assert not source.reads_state
  assert Counting.reads_state
