"""The reference itself; that the chunked head equals it is in `chunked_test`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.head import dense_head
from tests.head.problems import extras_for, random_problem, token_loss, value_and_gradients


def test_loss_and_stats_are_those_of_the_tokens_in_the_mask():
  problem = random_problem(batch=2, seq=5)
  student = np.einsum("bsd,vd->bsv", problem.student_hidden, problem.student_unembedding)
  teacher = np.einsum("bsd,vd->bsv", problem.teacher_hidden, problem.teacher_unembedding)
  extras, context = extras_for(problem), {"base": jnp.float32(1.3)}
  loss, stats = dense_head(token_loss)(*problem, extras, context)
  stats, labels = jax.tree.map(np.asarray, (stats, problem.labels))
  of_one_token, hardness = jax.jit(token_loss), np.asarray(extras["hardness"])
  expected = 0.0
  for token in zip(*np.nonzero(problem.mask), strict=True):
    row = (student[token][None], teacher[token][None], labels[token][None])
    value, row_stats = of_one_token(*row, {"hardness": hardness[token][None]}, context)
    expected += float(value[0])
    for name, stat in row_stats.items():
      assert float(stats[name][token]) == pytest.approx(float(stat[0]), rel=1e-5)
  assert float(loss) == pytest.approx(expected, rel=1e-6)
  for stat in stats.values():
    assert not np.any(np.asarray(stat)[~np.asarray(problem.mask)])


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, 1e30])
def test_tokens_outside_the_mask_change_nothing(poison):
  problem, head = random_problem(), dense_head(token_loss)
  outside, poison = ~np.asarray(problem.mask)[..., None], np.float32(poison)
  actual = value_and_gradients(
    head,
    problem,
    student_hidden=np.where(outside, poison, problem.student_hidden),
    teacher_hidden=np.where(outside, poison, problem.teacher_hidden),
  )
  expected = value_and_gradients(head, problem)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, b)


def test_nothing_flows_to_the_teacher():
  problem = random_problem()

  def objective(teacher_hidden, teacher_unembedding):
    arrays = (*problem[:2], teacher_hidden, teacher_unembedding, *problem[4:])
    return dense_head(token_loss)(*arrays, extras_for(problem), {"base": jnp.float32(1.3)})[0]

  for gradient in jax.jit(jax.grad(objective, argnums=(0, 1)))(*problem[2:4]):
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
