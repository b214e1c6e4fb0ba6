from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import probabilities
from egad_jax.losses.probabilities import LOG_ZERO, log_probabilities


def test_values_and_shift_invariance():
  logits = jnp.array([[2.0, 1.0, 0.0, -1.0]])
  expected = np.log(np.exp(logits) / np.exp(logits).sum())
  np.testing.assert_allclose(log_probabilities(logits), expected, atol=1e-6)
  np.testing.assert_allclose(log_probabilities(logits + 7.0), expected, atol=1e-5)


def test_temperature_scalar_and_per_token_agree():
  logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
  temperatures = jnp.array([[0.5, 1.0, 2.0], [3.0, 1.0, 0.7]])
  together = log_probabilities(logits, temperature=temperatures)
  for i in range(2):
    for j in range(3):
      alone = log_probabilities(logits[i, j], temperature=float(temperatures[i, j]))
      np.testing.assert_allclose(together[i, j], alone, atol=1e-6)
  traced = log_probabilities(logits, temperature=jnp.float32(2.0))
  np.testing.assert_array_equal(traced, log_probabilities(logits, temperature=2.0))


def test_temperature_is_detached():
  grad = jax.grad(lambda t: log_probabilities(jnp.arange(4.0), temperature=t)[0])(2.0)
  assert grad == 0


def test_infinite_entries_are_finite_and_carry_no_gradient():
  logits = jnp.array([1.0, -jnp.inf, 3.0])
  log_p = log_probabilities(logits)
  assert log_p[1] == LOG_ZERO
  np.testing.assert_allclose(jnp.exp(log_p).sum(), 1.0, atol=1e-6)
  grad = jax.grad(lambda z: log_probabilities(z).sum())(logits)
  assert grad[1] == 0
  assert bool(jnp.all(jnp.isfinite(grad)))


def test_hidden_columns_do_not_matter():
  logits = jnp.array([[1.0, jnp.nan, 3.0, jnp.inf]])
  where = jnp.array([True, False, True, False])

  def function(z):
    return (log_probabilities(z, where=where)[0, jnp.array([0, 2])] * jnp.array([1.0, 2.0])).sum()

  clean = logits[:, jnp.array([0, 2])]
  np.testing.assert_array_equal(
    log_probabilities(logits, where=where)[:, jnp.array([0, 2])], log_probabilities(clean)
  )
  grad = jax.grad(function)(logits)
  assert bool(jnp.all(jnp.isfinite(grad)))
  np.testing.assert_array_equal(grad[0, jnp.array([1, 3])], 0)


@pytest.mark.parametrize(
  ("given", "expected"),
  [(jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float32), (jnp.float32, jnp.float32)],
)
def test_at_least_float32(given, expected):
  assert log_probabilities(jnp.ones((3,), given)).dtype == expected


def test_float64_stays():
  with jax.enable_x64(True):
    assert log_probabilities(np.ones(3)).dtype == jnp.float64


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (lambda: log_probabilities(jnp.arange(3)), TypeError, "logits must be floating point"),
    (lambda: log_probabilities(jnp.float32(1)), ValueError, r"shape \[\.\.\., vocab\]"),
    (lambda: log_probabilities(jnp.ones(3), temperature=0.0), ValueError, "must be positive"),
    (
      lambda: log_probabilities(jnp.ones((2, 3)), temperature=np.array([1.0, -1.0])),
      ValueError,
      "must be positive",
    ),
    (
      lambda: log_probabilities(jnp.ones((2, 3)), temperature=jnp.ones(3)),
      ValueError,
      r"one per token, shape \(2,\), got \(3,\)",
    ),
    (lambda: log_probabilities(jnp.ones(3), where=jnp.ones(2)), ValueError, "one entry per voc"),
    (
      lambda: probabilities.check_pair(jnp.ones((2, 3)), jnp.ones((2, 4))),
      ValueError,
      r"same shape \[\.\.\., vocab\], got \(2, 3\) and \(2, 4\); cut both .*cross_tokenizer_loss",
    ),
    (
      lambda: probabilities.check_pair(jnp.ones((2, 3)), jnp.ones((1, 3))),
      ValueError,
      r"got \(2, 3\) and \(1, 3\)\.$",
    ),
    (lambda: probabilities.check_labels(jnp.ones(3), (3,)), TypeError, "must be integers"),
    (lambda: probabilities.check_labels(jnp.arange(3), (2,)), ValueError, "leading shape"),
    (lambda: probabilities.check_mask(jnp.ones((2, 3)), (2,)), ValueError, "one entry per token"),
  ],
)
def test_misuse(call, error, message):
  with pytest.raises(error, match=message):
    call()


def test_label_logit_equals_gather():
  values = jax.random.normal(jax.random.key(1), (4, 6))
  labels = jnp.array([0, 5, 2, -100])
  picked = probabilities.label_value(values, labels)
  np.testing.assert_array_equal(picked[:3], values[jnp.arange(3), labels[:3]])
  assert picked[3] == 0


def test_very_unlikely_entries_keep_their_value_and_gradient():
  logits = jnp.array([0.0, -1e4])
  np.testing.assert_array_equal(log_probabilities(logits), [0.0, -1e4])
  gradient = jax.grad(lambda z: log_probabilities(z)[1])(logits)
  np.testing.assert_array_equal(gradient, [-1.0, 1.0])


def test_numbers_are_arrays():
  assert probabilities.promote("x", 0.5).dtype == jnp.float32
  assert probabilities.check_labels(3, ()).shape == ()


def test_a_value_of_another_type_is_named():
  with pytest.raises(TypeError, match="share must be a float, got 1"):
    probabilities.check_type("share", 1, float)


def test_progress_is_detached():
  assert jax.grad(lambda p: probabilities.check_progress("progress", p))(0.3) == 0
