"""What `norm_compensated` keeps of a token's gradient, and what it does where there is none."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from egad_jax.losses import Temperature, adakd_loss
from egad_jax.losses.egad import egad_loss
from egad_jax.losses.focus import FocusState
from egad_jax.losses.gradient_norm import norm_compensated
from egad_jax.losses.log_divergences import LOG_DIVERGENCES
from egad_jax.losses.terms import at_temperature, log_pair
from egad_jax.losses.top_k import top_k_teacher
from egad_jax.methods import make_adakd, make_x_token

T = np.array([0.6, 0.9, 1.0, 1.3, 1.6, 2.0])


def logits(dtype=np.float32):
  rng = np.random.default_rng(0)
  teacher = 2 * rng.normal(size=(6, 9))
  return (teacher + 0.7 * rng.normal(size=(6, 9))).astype(dtype), teacher.astype(dtype)


@functools.partial(jax.jit, static_argnames=("name", "kind"))
def value_and_gradient(student, teacher, temperature, name, kind):
  """Value and gradient of each token; kind "squared" is T^2 D(T)."""
  divergence = LOG_DIVERGENCES[name]

  def total(student):
    pair = log_pair(student, teacher)
    if kind == "squared":
      value = temperature**2 * divergence(*at_temperature(pair, temperature))
    else:
      value = norm_compensated(divergence, pair, temperature, kind=kind)
    return value.sum(), value

  gradient, value = jax.grad(total, has_aux=True)(student)
  return value, gradient


def norm(x):
  return np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon", "token_wise_kl"])
def test_one_keeps_the_norm_and_the_other_the_direction(name):
  with jax.enable_x64(True):
    student, teacher = logits(np.float64)
    of = lambda kind, t: np.asarray(value_and_gradient(student, teacher, t, name, kind)[1])
    warm, plain = of("squared", T), of("squared", np.ones(6))
    assert np.ptp(norm(plain) / norm(warm)) > 0.2  # The powers of T do not keep it.
    shape, weight = of("gradient_norm", T), of("gradient_norm_only", T)
    np.testing.assert_allclose(norm(shape), norm(plain), rtol=1e-9)
    np.testing.assert_allclose(shape / norm(shape), warm / norm(warm), atol=1e-9)
    np.testing.assert_allclose(norm(weight), norm(warm), rtol=1e-9)
    np.testing.assert_allclose(weight / norm(weight), plain / norm(plain), atol=1e-9)


def test_values_are_those_of_the_formula():
  with jax.enable_x64(True):
    student, teacher = logits(np.float64)
    softmax = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    t = T[:, None]
    (q, p), (warm_q, warm_p) = (
      map(softmax, (student, teacher)),
      map(softmax, (student / t, teacher / t)),
    )
    ratio = norm(q - p)[:, 0] / (t * norm(warm_q - warm_p))[:, 0]
    expected = ratio * T**2 * (warm_p * np.log(warm_p / warm_q)).sum(-1)
    value, _ = value_and_gradient(student, teacher, t[:, 0], "forward_kl", "gradient_norm")
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    value, _ = value_and_gradient(student, teacher, t[:, 0], "forward_kl", "gradient_norm_only")
    np.testing.assert_allclose(value, (p * np.log(p / q)).sum(-1) / ratio, rtol=1e-9)


@pytest.mark.parametrize("kind", ["gradient_norm", "gradient_norm_only"])
def test_temperature_1_is_the_divergence_itself(kind):
  one = np.ones(6, np.float32)
  actual = value_and_gradient(*logits(), one, "forward_kl", kind)
  jax.tree.map(
    np.testing.assert_array_equal,
    actual,
    value_and_gradient(*logits(), one, "forward_kl", "squared"),
  )


def test_factor_is_at_most_4_and_at_least_a_quarter():
  # When cold, the first token has one sure entry in both models, whose gradient vanishes. When hot,
  # the second has several, on which the models differ, where before it was sure of one.
  student = np.array([[0.0, 0.4, -9.0], [0.0, -10.0, -10.0]], np.float32)
  teacher = np.array([[0.0, 0.9, -9.0], [0.0, -14.0, -10.0]], np.float32)
  of = functools.partial(value_and_gradient, student, teacher, name="forward_kl")
  temperature = np.array([0.05, 6.0], np.float32)
  squared, plain = of(temperature, kind="squared")[0], of(np.ones(2, np.float32), kind="squared")[0]
  shape, weight = (
    of(temperature, kind=kind)[0] for kind in ("gradient_norm", "gradient_norm_only")
  )
  np.testing.assert_allclose(shape / squared, [4, 0.25], rtol=1e-6)
  np.testing.assert_allclose(plain / weight, [4, 0.25], rtol=1e-6)


@pytest.mark.parametrize("kind", ["gradient_norm", "gradient_norm_only"])
def test_equal_models_and_impossible_entries_are_finite(kind):
  _, teacher = logits()
  value, gradient = value_and_gradient(teacher, teacher, T, "forward_kl", kind)
  np.testing.assert_allclose(value, 0, atol=1e-5)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)
  # The only entry there is has a gradient of exactly 0, so that the ratio is 0 / 0.
  for array in value_and_gradient(teacher[:, :1], teacher[:, 1:2], T, "forward_kl", kind):
    np.testing.assert_array_equal(array, 0)
  teacher[:, 0] = -np.inf
  student, _ = logits()
  for array in value_and_gradient(student, teacher, T, "forward_kl", kind):
    assert np.all(np.isfinite(array))


def test_top_k_teacher_has_the_norms_of_its_categories(batch):
  """With all entries in the top k, the categories are the vocabulary."""
  temperature = Temperature(compensation="gradient_norm")
  loss = functools.partial(
    egad_loss, progress=0.5, temperature=temperature, curriculum=None, branch=None
  )
  expected, _ = loss(*batch)
  of_top_k = top_k_teacher(batch.teacher, 11)
  actual, _ = loss(batch.student, of_top_k, batch.labels, batch.mask)
  np.testing.assert_allclose(actual, expected, rtol=2e-6)


def test_methods_whose_temperature_is_not_egads_refuse_it(batch):
  temperature = Temperature(compensation="gradient_norm")
  projection = np.arange(11)[:, None], np.ones((11, 1), np.float32)
  message = (
    "compensation 'gradient_norm' is egad's alone; for {} it must be one of per_token, linear"
  )
  with pytest.raises(ValueError, match=message.format("adakd")):
    make_adakd(temperature=temperature)
  with pytest.raises(ValueError, match=message.format("x_token")):
    make_x_token(projection=projection, temperature=temperature)
  with pytest.raises(ValueError, match=message.format("adakd")):
    adakd_loss(*batch, state=FocusState.init(), elapsed=0.0, temperature=temperature)
