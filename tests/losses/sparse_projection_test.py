"""The product with a sparse matrix, by gathers and a scatter, against the dense matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses.sparse_projection import sparse_projection

STUDENT, TEACHER = 40, 12


def projection() -> tuple[np.ndarray, np.ndarray]:
  """A matrix of which some rows are empty, and one column has most of the entries."""
  rng = np.random.default_rng(0)
  ids = rng.integers(0, TEACHER, (STUDENT, 3)).astype(np.int32)
  ids[::2, 1] = 5
  weights = rng.random((STUDENT, 3)).astype(np.float32)
  weights[3], weights[8:20, 2] = 0, 0
  return ids, weights


@pytest.mark.parametrize("known", [True, False])
def test_product_and_gradient_are_those_of_the_dense_matrix(known):
  ids, weights = projection()
  # Ids beyond the size are dropped.
  size = TEACHER - 2
  dense = np.zeros((STUDENT, TEACHER), np.float32)
  np.add.at(dense, (np.arange(STUDENT)[:, None], ids), weights)
  dense = dense[:, :size]
  rng = np.random.default_rng(1)
  q, cotangent = (rng.random((7, n)).astype(np.float32) for n in (STUDENT, size))

  @jax.jit
  def compute(q, cotangent, ids, weights):
    arrays = projection() if known else (ids, weights)
    # Leading axes are those of independent products.
    value, pullback = jax.vjp(sparse_projection(arrays, size), jnp.stack([q, 2 * q]))
    gradient = pullback(jnp.stack([cotangent, 3 * cotangent]))[0]
    return value / jnp.array([1, 2])[:, None, None], gradient / jnp.array([1, 3])[:, None, None]

  value, gradient = compute(q, cotangent, jnp.asarray(ids), jnp.asarray(weights))
  for i in range(2):
    np.testing.assert_allclose(value[i], q @ dense, rtol=1e-5)
    np.testing.assert_allclose(gradient[i], cotangent @ dense.T, rtol=1e-5)


def test_an_empty_matrix_projects_onto_nothing():
  ids, weights = projection()
  function = jax.jit(sparse_projection((ids, 0 * weights), TEACHER))
  np.testing.assert_array_equal(function(np.ones((2, STUDENT), np.float32)), 0)


def test_a_full_matrix_is_gathered_and_not_scattered():
  ids, weights = np.arange(STUDENT)[:, None], np.ones((STUDENT, 1), np.float32)
  product = sparse_projection((ids, weights), STUDENT)
  program = str(jax.make_jaxpr(product)(np.ones((2, STUDENT), np.float32)))
  assert "gather" in program
  assert "scatter" not in program
