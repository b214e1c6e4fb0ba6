from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egad_jax.head import distillation_head, vocab_parallel_head
from tests.head.problems import Problem, random_problem, token_loss, value_and_gradients


def place(problem: Problem, mesh, batch_axes) -> Problem:
  """As a model leaves them: rows over the batch's axes, unembeddings over vocabulary and width."""
  fsdp = "fsdp" if "fsdp" in mesh.axis_names else None

  def put(x, *spec):
    divides = [
      name if name and x.shape[i] % mesh.shape[name] == 0 else None for i, name in enumerate(spec)
    ]
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*divides)))

  rows = NamedSharding(mesh, PartitionSpec(batch_axes))
  return Problem(
    jax.device_put(problem.student_hidden, rows),
    put(problem.student_unembedding, "tensor", fsdp),
    jax.device_put(problem.teacher_hidden, rows),
    put(problem.teacher_unembedding, "tensor", fsdp),
    jax.device_put(problem.labels, rows),
    jax.device_put(problem.mask, rows),
  )


def assert_same(actual, expected, tolerance=1e-5):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


OPTIONS = {"chunk_size": 6, "student_soft_cap": 20.0, "teacher_soft_cap": 30.0}
PLAIN = distillation_head(token_loss, **OPTIONS)


@pytest.mark.short_form(4)
@pytest.mark.parametrize(
  ("axes", "vocab"),
  [
    ({"data": 2, "tensor": 4}, 1_003),
    ({"fsdp": 1, "tensor": 8}, 1_003),
    ({"fsdp": 2, "tensor": 4}, 1_003),
    ({"data": 2, "fsdp": 2, "tensor": 2}, 49_152),
    ({"data": 1, "fsdp": 2, "tensor": 4}, 49_152),
  ],
)
def test_equals_one_device(axes, vocab):
  mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
  batch_axes = tuple(name for name in axes if name != "tensor")
  problem = random_problem(batch=4, seq=8, vocab=vocab)
  head = vocab_parallel_head(
    token_loss, mesh, batch_axes=batch_axes, vocab_axis="tensor", **OPTIONS
  )
  actual = value_and_gradients(head, place(problem, mesh, batch_axes))
  assert_same(actual, value_and_gradients(PLAIN, problem))
