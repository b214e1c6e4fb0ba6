from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses, methods
from egad_jax.head import dense_head, distillation_head
from egad_jax.head.closed_form import entropy_of_sums, has_closed_form, loss_and_gradient
from tests.head.chunked_test import assert_same
from tests.head.problems import filled_context, random_problem

VARIANTS = {
  "egad": {"ce_weight": 0.3},
  "without cross-entropy": {},
  "hard tokens by features alone": {"branch": losses.Branch(hard_logits=False), "ce_weight": 0.1},
  "one temperature": {"temperature": 2.0, "curriculum": None, "branch": None},
  "mean_norm": {"temperature": losses.Temperature(compensation="mean_norm")},
}


def by_autodiff(token_loss):
  """The same loss in a form that the head does not recognise."""
  return functools.partial(token_loss)


@pytest.mark.parametrize("compensation", ["gradient_norm", "gradient_norm_only"])
def test_norm_of_the_gradient_is_left_to_autodiff(compensation):
  temperature = losses.Temperature(compensation=compensation)
  token_loss = methods.make_egad(temperature=temperature, branch=None).loss.function
  assert token_loss.is_forward_kl
  assert not has_closed_form(token_loss)
  problem = random_problem()
  actual = value_and_gradients(distillation_head(token_loss, chunk_size=7), problem)
  assert_same(actual, value_and_gradients(dense_head(token_loss), problem))


def value_and_gradients(head, problem):
  def objective(student_hidden, student_unembedding, rest, context):
    return head(student_hidden, student_unembedding, *rest, {}, context)

  step = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
  return step(*problem[:2], problem[2:], filled_context())


@pytest.mark.parametrize(
  ("variant", "caps"), [*((v, (None, None)) for v in VARIANTS), ("egad", (3.0, 5.0))]
)
def test_is_what_autodiff_makes_of_the_same_loss(variant, caps):
  token_loss = methods.make_egad(**VARIANTS[variant]).loss.function
  assert has_closed_form(token_loss)
  problem = random_problem()
  labels = np.array(problem.labels)
  labels[0, :3] = [-1, 37, 10**6]
  problem = problem._replace(labels=labels)
  options = {"student_soft_cap": caps[0], "teacher_soft_cap": caps[1]}
  actual = value_and_gradients(distillation_head(token_loss, chunk_size=7, **options), problem)
  by_autodiff_head = dense_head(by_autodiff(token_loss), **options)
  assert_same(actual, value_and_gradients(by_autodiff_head, problem))


def test_equals_float64_to_rounding():
  token_loss = methods.make_egad(ce_weight=0.3).loss.function
  with jax.enable_x64(True):
    exact = random_problem(dtype=np.float64)
    expected = value_and_gradients(dense_head(by_autodiff(token_loss)), exact)
    actual = value_and_gradients(distillation_head(token_loss), exact)
    assert actual[0][0].dtype == jnp.float64
  assert_same(actual, expected, 1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_large_logits_stay_finite_and_right(temperature):
  rng = np.random.default_rng(3)
  logits = [np.asarray(rng.normal(size=(6, 50)) * 1e3, np.float32) for _ in range(2)]
  labels, mask = np.arange(6, dtype=np.int32), np.ones(6, bool)
  token_loss = methods.make_vanilla_kd(temperature=temperature, ce_weight=1.0).loss.function
  context = filled_context()
  step = jax.jit(lambda z_s, z_t, c: loss_and_gradient(token_loss, z_s, z_t, labels, mask, c))
  loss, stats, gradient = step(*logits, context)
  # Not compiled: logits of 10^4 that XLA rounds otherwise are another teacher.
  rest = (logits[1], labels, {}, context)
  expected, pullback, expected_stats = jax.vjp(
    lambda z: token_loss(z, *rest), logits[0], has_aux=True
  )
  assert_same((loss, stats), (expected, expected_stats))
  assert_same(gradient, pullback(jnp.ones(6))[0])


def test_only_a_steered_forward_kl_has_it():
  make = methods.make_egad
  assert has_closed_form(methods.make_vanilla_kd().loss.function)
  assert not has_closed_form(make(divergence="reverse_kl").loss.function)
  assert not has_closed_form(make(divergence="skew_forward_kl").loss.function)
  assert not has_closed_form(methods.make_adakd().loss.function)
  assert not has_closed_form(by_autodiff(make().loss.function))


def test_the_entropy_of_a_certain_teacher_is_zero():
  assert float(entropy_of_sums(jnp.float32(1), jnp.float32(0))) == 0.0


def test_a_masked_token_has_no_gradient():
  token_loss = methods.make_egad(ce_weight=0.3).loss.function
  logits = np.asarray(np.random.default_rng(0).normal(size=(2, 4, 9)), np.float32)
  labels, mask = np.arange(4, dtype=np.int32), np.array([True, False, True, False])
  step = jax.jit(lambda z_s, z_t, c: loss_and_gradient(token_loss, z_s, z_t, labels, mask, c))
  *_, gradient = step(*logits, filled_context())
  assert np.array_equal(np.any(np.asarray(gradient), axis=1), mask)
