"""The sorted distance of `cross_tokenizer` at single positions: golden values, order, gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses import universal_logit_distance

GOLDEN = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.693983), (2.0, 0.355559)])
def test_golden_universal_logit_distance(temperature, expected):
  value = universal_logit_distance(*GOLDEN, temperature=temperature)
  np.testing.assert_allclose(value, expected, atol=1e-6)


def test_universal_logit_distance_is_blind_to_order(batch):
  distance = jax.jit(universal_logit_distance)
  value = distance(batch.student, batch.teacher)
  assert value.shape == (3, 8)
  assert bool((value <= 2 * losses.total_variation(batch.student, batch.teacher) + 1e-6).all())
  order = np.random.default_rng(0).permutation(11)
  shuffled = distance(batch.student[..., order], batch.teacher)
  np.testing.assert_allclose(shuffled, value, atol=1e-6)
  itself = lambda z: universal_logit_distance(z[..., order], batch.teacher).sum()
  value_at_itself, gradient = jax.jit(jax.value_and_grad(itself))(batch.teacher)
  np.testing.assert_allclose(value_at_itself, 0, atol=1e-5)
  np.testing.assert_array_equal(gradient, 0)
  padded = jnp.pad(batch.teacher, ((0, 0), (0, 0), (0, 4)), constant_values=-jnp.inf)
  np.testing.assert_allclose(distance(batch.student, padded), value, atol=1e-6)
  with jax.enable_x64(True):
    q = jax.nn.softmax(jnp.array(GOLDEN[0], jnp.float64))
    signs = jnp.array([-1.0, 1.0, 1.0, 1.0])  # Sorted, .644 against .278 and so on.
    gradient = jax.grad(distance)(
      jnp.array(GOLDEN[0], jnp.float64) - jnp.array([0.0, 1e-9, 2e-9, 0.0]),
      jnp.array(GOLDEN[1], jnp.float64),
    )
    np.testing.assert_allclose(gradient, q * (signs - (q * signs).sum()), atol=1e-8)


def test_gradient_flows_to_the_student_only(batch):
  total = lambda *z: universal_logit_distance(*z).sum()
  to_student, to_teacher = jax.grad(total, argnums=(0, 1))(batch.student, batch.teacher)
  assert bool(jnp.any(to_student != 0))
  np.testing.assert_array_equal(to_teacher, 0)


def test_leading_axes_must_agree(batch):
  with pytest.raises(ValueError, match="same leading axes"):
    universal_logit_distance(batch.student, batch.teacher[:2])
