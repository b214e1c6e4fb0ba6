from __future__ import annotations

import jax
import pytest
from jax.sharding import AxisType

from egad_jax.head import distillation_head, head_on_mesh, on_mesh
from tests.head.problems import random_problem, token_loss, value_and_gradients
from tests.head.vocab_parallel_test import assert_same, place


@pytest.mark.parametrize(
  ("tensor", "vocab", "splits_vocabulary"),
  [(2, 40, True), (4, 37, False), (1, 40, False)],
)
def test_the_tensor_axis_splits_the_vocabulary_where_it_divides_it(
  tensor, vocab, splits_vocabulary, monkeypatch
):
  chosen = []
  for name in ("vocab_parallel_head", "sharded_head"):
    make = getattr(on_mesh, name)
    monkeypatch.setattr(
      on_mesh, name, lambda *a, name=name, make=make, **k: chosen.append(name) or make(*a, **k)
    )
  mesh = jax.make_mesh((8 // tensor, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  problem = random_problem(batch=8, seq=8, vocab=vocab)
  head = head_on_mesh(
    token_loss,
    mesh,
    batch_axes=("data",),
    tensor_axis="tensor",
    vocab_size=vocab,
    chunk_size=6,
  )
  actual = jax.jit(lambda p: value_and_gradients(head, p))(place(problem, mesh, ("data",)))
  assert_same(actual, value_and_gradients(distillation_head(token_loss, chunk_size=6), problem))
  assert chosen == ["vocab_parallel_head" if splits_vocabulary else "sharded_head"]
