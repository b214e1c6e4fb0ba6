"""Inputs at the edge of floating point, for every divergence and every in-batch form."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses.focus import FocusState
from egad_jax.losses.taid import InterpolationState

LABELS = np.zeros((2, 4), np.int32)
EVERYWHERE = np.ones((2, 4), bool)
SHARED = InterpolationState(jnp.float32(0.4), jnp.float32(0), jnp.float32(jnp.inf))
IN_BATCH = {
  "egad": functools.partial(losses.egad_loss, progress=0.3, ce_weight=0.1),
  "adakd": functools.partial(losses.adakd_loss, state=FocusState.init(), elapsed=0.5),
  "taid": functools.partial(losses.taid_loss, state=SHARED, elapsed=0.5),
  "se_kd": losses.se_kd_loss,
  "ea_kd": losses.ea_kd_loss,
  "aekt": losses.explicit_knowledge_loss,
}
EDGES = ("far_apart", "identical", "bfloat16", "student_inf", "teacher_inf", "both_inf")


def edge_case(name: str, vocab: int) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  student, teacher = (5 * rng.normal(size=(2, 4, vocab)).astype(np.float32) for _ in range(2))
  without = lambda z: np.where(np.arange(vocab) == 3, np.float32(-np.inf), z)
  return {
    "far_apart": lambda: (1e4 * np.sign(student), -1e4 * np.sign(teacher)),
    "identical": lambda: (student, student),
    "bfloat16": lambda: (student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16)),
    "student_inf": lambda: (without(student), teacher),
    "teacher_inf": lambda: (student, without(teacher)),
    "both_inf": lambda: (without(student), without(teacher)),
  }[name]()


@functools.partial(jax.jit, static_argnames="name")
def value_and_gradient(name: str, student: jax.Array, teacher: jax.Array, mask: jax.Array):
  loss = lambda z: IN_BATCH[name](z, teacher, LABELS, mask)[0].astype(jnp.float32)
  return jax.value_and_grad(loss)(student)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", IN_BATCH)
def test_in_batch_forms_are_finite(name, edge):
  student, teacher = edge_case(edge, 9)
  value, gradient = value_and_gradient(name, student, teacher, EVERYWHERE)
  assert np.isfinite(value)
  assert np.all(np.isfinite(np.asarray(gradient, np.float32)))
  value, gradient = value_and_gradient(name, student, teacher, ~EVERYWHERE)
  assert value == 0
  assert not np.any(np.asarray(gradient, np.float32))


@pytest.mark.parametrize("edge", EDGES[:3])
@pytest.mark.parametrize("name", IN_BATCH)
def test_a_vocabulary_of_one_teaches_nothing(name, edge):
  value, gradient = value_and_gradient(name, *edge_case(edge, 1), EVERYWHERE)
  assert abs(float(value)) < 1e-6
  np.testing.assert_allclose(np.asarray(gradient, np.float32), 0, atol=1e-6)


@jax.jit
def all_divergences(student: jax.Array, teacher: jax.Array, temperature: jax.Array):
  def value_and_gradient(divergence):
    value, pullback = jax.vjp(lambda z: divergence(z, teacher, temperature=temperature), student)
    return value, *pullback(jnp.ones_like(value))

  return {name: value_and_gradient(function) for name, function in losses.DIVERGENCES.items()}


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("name", losses.DIVERGENCES)
def test_divergences_are_finite_and_zero_over_a_vocabulary_of_one(name, temperature):
  for vocab in (1, 9):
    for edge in EDGES if vocab > 1 else EDGES[:3]:
      student, teacher = edge_case(edge, vocab)
      for array in all_divergences(student, teacher, temperature)[name]:
        array = np.asarray(array, np.float32)
        assert np.all(np.isfinite(array)), (edge, vocab)
        if vocab == 1:
          np.testing.assert_allclose(array, 0, atol=1e-6)
