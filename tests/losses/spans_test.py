"""Which spans count, and the distribution that stands for one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses.spans import log_or_floor, make_row, span_log_average, span_mask


def test_spans_that_both_sides_have():
  student = np.array([[1, 1, 3, 0, 9], [0, 0, 0, 0, 0], [-1, 5, 2, 2, 2]], np.int32)
  teacher = np.array([[3, 3, 1, 2], [1, 2, 3, 4], [2, 5, 0, -1]], np.int32)
  mask = span_mask(student, teacher)
  # Number 5 and 9 have no place among min(5, 4) spans.
  expected = [[True, False, True, False], [False] * 4, [False, True, False, False]]
  np.testing.assert_array_equal(mask, expected)
  compiled = jax.jit(span_mask)
  np.testing.assert_array_equal(compiled(student, teacher), expected)
  np.testing.assert_array_equal(compiled(student[0], teacher[0]), expected[0])


def test_a_row():
  @jax.jit
  def compute(*arrays):
    row = make_row(*arrays)
    temperatures, values = np.array([2, 3, 5, 5], np.float32), np.arange(5, dtype=np.float32)
    return row, row.student.of_span(temperatures), row.student.total(values)

  student, teacher = np.full((5, 3), np.nan, np.float32), np.ones((4, 2), np.float32)
  spans = np.array([1, 2, 2, 0, 3], np.int32), np.array([2, 1, 4, 4], np.int32)
  row, of_span, total = compute(student, teacher, *spans)
  np.testing.assert_array_equal(row.student.span, [0, 1, 1, 4, 4])
  np.testing.assert_array_equal(row.student.counts, [1, 2, 0, 0])
  np.testing.assert_array_equal(row.teacher.span, [1, 0, 4, 4])
  np.testing.assert_array_equal(row.valid, [True, True, False, False])
  np.testing.assert_array_equal(
    np.isnan(row.student.logits)[:, 0], [True, True, True, False, False]
  )
  np.testing.assert_array_equal(of_span, [2, 3, 3, 1, 1])
  np.testing.assert_array_equal(total, [0, 3, 0, 0])


@pytest.mark.parametrize("average", ["prob", "logprob", "chain_rule"])
def test_averages_are_distributions(average):
  logits = (2 * np.random.default_rng(0).normal(size=(2, 6, 7))).astype(np.float32)
  spans = np.array([[1, 1, 2, 3, 3, 3], [0, 1, 2, 2, 0, 3]], np.int32)
  function = functools.partial(span_log_average, average=average, temperature=1.5)
  log_p = np.asarray(jax.jit(function)(logits, spans))
  assert log_p.shape == logits.shape
  np.testing.assert_allclose(np.exp(log_p)[:, :3].sum(-1), 1, rtol=1e-6)
  log_softmax = lambda z: z - np.log(np.exp(z).sum(-1, keepdims=True))
  alone = log_softmax(np.float64(logits) / 1.5)
  np.testing.assert_allclose(log_p[0, 1], alone[0, 2], rtol=1e-5, atol=1e-6)
  expected = {
    "prob": np.log(np.exp(alone[0, 3:]).mean(0)),
    "logprob": log_softmax(alone[0, 3:].mean(0)),
    "chain_rule": alone[0, 3],
  }[average]
  np.testing.assert_allclose(log_p[0, 2], expected, rtol=1e-5, atol=1e-6)


def test_probabilities_of_zero():
  smallest = np.finfo(np.float32).tiny
  values = np.array([1.0, 0.0, smallest / 2, 1e-30], np.float32)

  @jax.jit
  def compute(values):
    return log_or_floor(values), jax.grad(lambda p: log_or_floor(p).sum())(values)

  logs, gradient = compute(values)
  np.testing.assert_allclose(logs, [0, -100, -100, np.log(1e-30)], rtol=1e-6)
  np.testing.assert_allclose(gradient, [1, 0, 0, 1e30], rtol=1e-5)
  with jax.enable_x64(True):
    np.testing.assert_allclose(log_or_floor(np.array([1e-40, 1e-44])), [-92.1034037198, -100])


def test_misuse():
  logits, spans = jnp.ones((4, 3)), jnp.ones(4, jnp.int32)
  with pytest.raises(ValueError, match="span_average must be one of prob, logprob, chain_rule"):
    span_log_average(logits, spans, average="mean")
  with pytest.raises(ValueError, match=r"spans must have shape \(4,\), got \(3,\)"):
    span_log_average(logits, spans[:3])
  with pytest.raises(TypeError, match="student_spans must be integers, got float32"):
    span_mask(jnp.ones(3), spans)
  with pytest.raises(ValueError, match="same leading axes"):
    span_mask(jnp.ones((2, 3), int), spans)


def test_numbers_have_no_axis_of_tokens():
  with pytest.raises(ValueError, match="same leading axes"):
    span_mask(1, 1)


def test_a_long_span_in_bfloat16_is_a_distribution():
  # bfloat16 does not know the number 257.
  log_p = span_log_average(jnp.zeros((257, 3), jnp.bfloat16), jnp.ones(257, jnp.int32))
  np.testing.assert_allclose(np.exp(log_p[0]).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("average", ["prob", "logprob", "chain_rule"])
def test_a_span_without_tokens_is_finite_in_value_and_gradient(average):
  logits, spans = jnp.arange(6.0).reshape(2, 3), jnp.array([1, 1])
  function = lambda z: jnp.sum(span_log_average(z, spans, average=average))
  value, gradient = jax.jit(jax.value_and_grad(function))(logits)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
