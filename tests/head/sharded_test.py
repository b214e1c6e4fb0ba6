from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egad_jax.head import distillation_head, sharded_head
from tests.head.problems import Problem, random_problem, token_loss, value_and_gradients

PLAIN = distillation_head(token_loss, chunk_size=8)


@pytest.fixture(scope="module")
def expected():
  return value_and_gradients(PLAIN, random_problem(batch=8, seq=16))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_equals_one_device(shape, expected):
  names = ("data", "fsdp", "tensor")
  mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 3)
  problem = random_problem(batch=8, seq=16)
  head = sharded_head(PLAIN, mesh, batch_axes=("data", "fsdp"), sequence_axes=("tensor",))
  placed = Problem(
    *(
      jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp") if i != 1 else None)))
      if i not in (1, 3)
      else jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "fsdp")))
      for i, x in enumerate(problem)
    )
  )
  actual = value_and_gradients(head, placed)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
