"""When the chunked head calls the kernels of a TPU: what they serve, and only for gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from egad_jax import methods
from egad_jax.head import distillation_head
from egad_jax.head.tpu import Kernels
from egad_jax.losses import top_k_teacher
from egad_jax.teachers import Hidden
from tests.head.closed_form_test import value_and_gradients
from tests.head.problems import filled_context, half_problem

V5E = Kernels(2**27, 1)


def calls_kernels(token_loss, problem, **options) -> bool:
  head = distillation_head(token_loss, kernels=V5E, **options)
  return "pallas_call" in str(jax.make_jaxpr(lambda p: value_and_gradients(head, p))(problem))


def test_what_they_cannot_serve_is_xlas():
  token_loss, problem = methods.make_egad().loss.function, half_problem(300)
  assert calls_kernels(token_loss, problem)
  assert not calls_kernels(methods.make_egad(divergence="reverse_kl").loss.function, problem)
  assert not calls_kernels(
    token_loss, problem._replace(student_hidden=problem.student_hidden.astype(np.float32))
  )
  narrow = problem._replace(
    student_hidden=problem.student_hidden[..., :96],
    student_unembedding=problem.student_unembedding[:, :96],
  )
  assert not calls_kernels(token_loss, narrow)


def test_kernels_read_hidden_states_and_their_own_entropy():
  problem = half_problem(300)
  head = distillation_head(methods.make_egad().loss.function, kernels=V5E)
  hidden = Hidden(problem.teacher_hidden, problem.teacher_unembedding)
  entropy = {"teacher_entropy": jnp.ones(problem.mask.shape)}

  def calls(outputs, extras):
    rest = (problem.student_unembedding, outputs, problem.labels, problem.mask, extras)
    return "pallas_call" in str(
      jax.make_jaxpr(jax.grad(lambda x: head.of_outputs(x, *rest, filled_context())[0]))(
        problem.student_hidden
      )
    )

  assert calls(hidden, {})
  assert not calls(hidden, entropy)
  assert not calls(top_k_teacher(jnp.zeros((*problem.mask.shape, 300)), 5), {})


def test_evaluation_calls_no_kernel():
  problem = half_problem(300)
  head = distillation_head(methods.make_egad().loss.function, kernels=V5E)
  program = jax.make_jaxpr(lambda p: head(*p, {}, filled_context()))(problem)
  assert "pallas_call" not in str(program)
