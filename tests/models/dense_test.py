"""Tests of the products against einsum, value and gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.models.dense import project


@pytest.mark.parametrize(
  ("equation", "ins", "outs"),
  [("bsd,df->bsf", (6,), (5,)), ("bsd,dhk->bshk", (6,), (2, 3)), ("bshk,hkd->bsd", (2, 3), (5,))],
)
def test_equals_einsum(equation, ins, outs):
  rng = np.random.default_rng(0)
  x, kernel, weights = (
    jnp.asarray(rng.standard_normal(shape), jnp.float32)
    for shape in ((2, 4, *ins), ins + outs, (2, 4, *outs))
  )

  def both(product):
    objective = lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel)) * weights)
    return jax.value_and_grad(objective, argnums=(0, 1))(x, kernel)

  got = both(lambda x, kernel: project(x, kernel, inputs=len(ins)))
  wanted = both(lambda x, kernel: jnp.einsum(equation, x, kernel))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)


def test_gradient_contracts_one_axis():
  # The reason for the module: two contracted axes make XLA on CPU transpose its operands.
  x, kernel = jnp.ones((2, 4, 6)), jnp.ones((6, 5))
  text = jax.jit(jax.grad(lambda k: jnp.sum(project(x, k) ** 2))).lower(kernel).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert len(products) == 2
  assert all(line.count("contracting_dims = [0] x [0]") or "[1] x [0]" in line for line in products)
