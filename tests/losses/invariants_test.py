"""What must hold of all divergences together: bounds, limits, symmetries, smoothness, extremes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from egad_jax import losses
from egad_jax.losses import log_divergences
from egad_jax.losses.divergences import DIVERGENCES, hellinger
from egad_jax.losses.probabilities import log_probabilities

ALL = {**DIVERGENCES, "hellinger": hellinger}
LABELLED = {"target": losses.target_class_kl, "non_target": losses.non_target_class_kl}
# Detached weights: their gradient is, on purpose, not that of their value.
SMOOTH = [n for n in ALL if n not in ("token_wise_kl", "adaptive_kl")]


def pair(shape=(6, 9), scale=2.0, dtype=np.float32):
  rng = np.random.default_rng(0)
  return tuple((scale * rng.normal(size=shape)).astype(dtype) for _ in range(2))


def softmax(z):
  weights = np.exp(z - z.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


@jax.jit
def all_values(student, teacher, temperature=1.0):
  return {name: f(student, teacher, temperature=temperature) for name, f in ALL.items()}


@jax.jit
def all_gradients(student, teacher, temperature=1.0):
  def gradient(function):
    return jax.grad(lambda z: function(z, teacher, temperature=temperature).sum())(student)

  return {name: gradient(function) for name, function in ALL.items()}


def test_hellinger_golden_values_and_gradient():
  with jax.enable_x64(True):
    z_s, z_t = np.array([1.0, 1.0, 1.0, 0.0]), np.array([2.0, 1.0, 0.0, -1.0])
    temperatures = {1.0: 0.278390, 2.0: 0.148420}

    @jax.jit
    def compute(z_s):
      step = jax.value_and_grad(hellinger)
      answers = [step(z_s, z_t, temperature=temperature) for temperature in temperatures]
      return answers, losses.alpha_beta(z_s, z_t, alpha=0.5, beta=0.5)

    answers, four_squares = jax.tree.map(np.asarray, compute(z_s))
    for (temperature, expected), (value, gradient) in zip(
      temperatures.items(), answers, strict=True
    ):
      np.testing.assert_allclose(value, expected, atol=6e-7)
      p, q = softmax(z_t / temperature), softmax(z_s / temperature)
      affinity = np.sum(np.sqrt(p * q))
      np.testing.assert_allclose(value, np.sqrt(1 - affinity), rtol=1e-12)
      slope = (q * affinity - np.sqrt(p * q)) / (4 * value * temperature)
      np.testing.assert_allclose(gradient, slope, atol=1e-12)
    np.testing.assert_allclose(4 * answers[0][0] ** 2, four_squares, rtol=1e-12)


def test_hellinger_has_no_infinite_slope_at_identical_models():
  _, teacher = pair()
  # Differentiated operation by operation, q and p differ by rounding, with either sign.
  # A teacher that is a constant of the program would be folded, by other roundings than q's.
  gradient = jax.grad(lambda z_s, z_t: hellinger(z_s, z_t, temperature=0.1).sum())
  np.testing.assert_array_equal(gradient(teacher, teacher), 0)
  np.testing.assert_array_equal(jax.jit(gradient)(teacher, teacher), 0)
  apart = np.array([[0.0, -np.inf], [-np.inf, 0.0]], np.float32)
  value, gradient = jax.jit(jax.value_and_grad(hellinger))(apart[0], apart[1])
  np.testing.assert_allclose(value, 1, atol=1e-6)
  assert np.all(np.isfinite(gradient))


def centred(q, d):
  return q * (d - np.sum(q * d))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_gradient_identities_at_other_shares(share):
  with jax.enable_x64(True):
    student, teacher = pair((7,), dtype=np.float64)
    p, q = softmax(teacher), softmax(student)
    m = share * p + (1 - share) * q
    reverse_m = (1 - share) * p + share * q
    skew = -centred(q, (1 - share) * p / m)
    reverse_skew = centred(q, np.log(q / reverse_m) + 1 - share * q / reverse_m)
    gradients = jax.jit(
      lambda z: (
        jax.grad(losses.jensen_shannon)(z, teacher, beta=share),
        jax.grad(losses.skew_forward_kl)(z, teacher, alpha=share),
        jax.grad(losses.skew_reverse_kl)(z, teacher, alpha=share),
      )
    )(student)
    expected = (centred(q, (1 - share) * np.log(q / m)), skew, reverse_skew)
    for gradient, right in zip(gradients, expected, strict=True):
      np.testing.assert_allclose(gradient, right, atol=1e-12)


def test_slopes_near_identical_models():
  with jax.enable_x64(True):
    teacher, direction = pair((8,), 1.0, np.float64)
    student = teacher + 1e-6 * direction
    p, q = softmax(teacher), softmax(student)
    both_ways = lambda z: losses.forward_kl(z, teacher) + losses.reverse_kl(z, teacher)
    ours, jeffreys = jax.jit(
      lambda z: (jax.grad(losses.token_wise_kl)(z, teacher), jax.grad(both_ways)(z))
    )(student)
    np.testing.assert_allclose(ours, 1.5 * (q - p), rtol=1e-4, atol=1e-13)
    np.testing.assert_allclose(jeffreys, 2 * (q - p), rtol=1e-4, atol=1e-13)


def test_bounds_between_the_distances():
  with jax.enable_x64(True):
    student, teacher = pair((400, 7), 4.0, np.float64)
    values, swapped = (
      jax.tree.map(np.asarray, all_values(*models))
      for models in ((student, teacher), (teacher, student))
    )

    @jax.jit
    def mixtures(student, teacher):
      skews = {
        alpha: [
          skew(student, teacher, alpha=alpha)
          for skew in (losses.skew_forward_kl, losses.skew_reverse_kl)
        ]
        for alpha in (0.01, 0.1, 0.5, 0.99)
      }
      betas = (0.1, 0.5, 0.9)
      return skews, {beta: losses.jensen_shannon(student, teacher, beta=beta) for beta in betas}

    skews, jensen_shannons = jax.tree.map(np.asarray, mixtures(student, teacher))
    distance, square = values["hellinger"], values["hellinger"] ** 2
    variation = values["total_variation"]
    slack = 1e-12
    assert np.all((distance >= 0) & (distance <= 1))
    assert np.all(square <= variation + slack)
    assert np.all(variation <= np.sqrt(2) * distance + slack)
    for kl in ("forward_kl", "reverse_kl"):
      assert np.all(variation <= np.sqrt(values[kl] / 2) + slack)
      assert np.all(-2 * np.log1p(-square) <= values[kl] + slack)
    for alpha, both in skews.items():
      for value in both:
        assert np.all((value >= -slack) & (value <= -np.log(alpha) + slack))
    for beta, value in jensen_shannons.items():
      # At most the entropy of the coin that mixes the two.
      most = -beta * np.log(beta) - (1 - beta) * np.log(1 - beta)
      assert np.all((value >= -slack) & (value <= most + slack))
    for name in ("jensen_shannon", "total_variation", "hellinger"):
      np.testing.assert_allclose(swapped[name], values[name], atol=1e-12, err_msg=name)


def test_hyper_parameters_have_no_jump():
  with jax.enable_x64(True):
    student, teacher = pair((5, 7), dtype=np.float64)
    p, q = softmax(teacher), softmax(student)
    values = (0.0, 1e-9, 1e-6, 1e-3)
    mixtures = (
      (losses.jensen_shannon, "beta"),
      (losses.skew_forward_kl, "alpha"),
      (losses.skew_reverse_kl, "alpha"),
    )

    @jax.jit
    def compute(student, teacher):
      return {
        "forward": losses.forward_kl(student, teacher),
        "reverse": losses.reverse_kl(student, teacher),
        "mixtures": [
          [
            [function(student, teacher, **{keyword: share}) for share in (value, 1 - value)]
            for value in values
          ]
          for function, keyword in mixtures
        ],
        "per_beta": losses.jensen_shannon(student, teacher, beta=1e-7) / 1e-7,
        "corners": [
          losses.alpha_beta(student, teacher, alpha=alpha, beta=beta)
          for alpha, beta in ((1.0, 1e-6), (1e-6, 1.0))
        ],
        "axes": [
          (
            losses.alpha_beta(student, teacher, alpha=alpha, beta=0.0),
            losses.alpha_beta(teacher, student, alpha=0.0, beta=alpha),
          )
          for alpha in (0.3, 2.0)
        ],
      }

    found = jax.tree.map(np.asarray, compute(student, teacher))
    forward, reverse = found["forward"], found["reverse"]
    # All three are convex, so the tangent at 0 bounds how far they can be from it: the KL of
    # Jensen-Shannon, the chi-squared divergences of the two skews.
    tangents = (
      (0, forward),
      (forward, np.sum(p**2 / q, -1) - 1),
      (reverse, np.sum(q**2 / p, -1) - 1),
    )
    for (at_zero, slope), at_values in zip(tangents, found["mixtures"], strict=True):
      for value, (near, far) in zip(values, at_values, strict=True):
        assert np.all(np.abs(near - at_zero) <= value * slope + 1e-14), value
        assert np.all(np.abs(far) <= value * (forward + reverse) + 1e-14), value
    np.testing.assert_allclose(found["per_beta"], forward, rtol=1e-4)
    for near, limit in zip(found["corners"], (forward, reverse), strict=True):
      np.testing.assert_allclose(near, limit, rtol=1e-4)
    for alpha, answers in zip((0.3, 2.0), found["axes"], strict=True):
      # On the axes, the extended definition.
      expected = np.sum(q**alpha - p**alpha + alpha * p**alpha * np.log(p / q), -1) / alpha**2
      for answer in answers:
        np.testing.assert_allclose(answer, expected, atol=1e-13)


@pytest.mark.short_form(4)
@pytest.mark.parametrize("name", [*SMOOTH, *LABELLED])
def test_second_derivatives(name):
  with jax.enable_x64(True):
    student, teacher = pair((5,), dtype=np.float64)
    if name in LABELLED:
      function = jax.jit(lambda z: LABELLED[name](z, teacher, jnp.int32(1)))
    else:
      function = jax.jit(lambda z: ALL[name](z, teacher))
    check_grads(function, (student,), order=2, modes=("rev",))


def test_shift_and_permutation_of_the_vocabulary():
  with jax.enable_x64(True):
    student, teacher = pair((400, 7), dtype=np.float64)
    order = np.random.default_rng(1).permutation(7)
    permuted = (student[:, order], teacher[:, order])
    plain, shifted, permuted, gradients, permuted_gradients = jax.tree.map(
      np.asarray,
      (
        all_values(student, teacher),
        all_values(student + 5.0, teacher - 3.0),
        all_values(*permuted),
        all_gradients(student, teacher),
        all_gradients(*permuted),
      ),
    )
    for name in ALL:
      np.testing.assert_allclose(shifted[name], plain[name], atol=1e-12, err_msg=name)
      np.testing.assert_allclose(permuted[name], plain[name], atol=1e-12, err_msg=name)
      np.testing.assert_allclose(
        permuted_gradients[name], gradients[name][:, order], atol=1e-12, err_msg=name
      )
      # Logits have one degree of freedom too many; the gradient does not use it.
      np.testing.assert_allclose(gradients[name].sum(-1), 0, atol=1e-12, err_msg=name)


def test_temperatures_of_all_sizes_per_token():
  student, teacher = pair()
  temperature = np.array([0.1, 0.3, 1.0, 3.0, 30.0, 100.0], np.float32)
  together, gradients = (f(student, teacher, temperature) for f in (all_values, all_gradients))
  with jax.enable_x64(True):
    exact = all_values(*(np.asarray(a, np.float64) for a in (student, teacher, temperature)))
  for name in ALL:
    assert np.all(np.isfinite(gradients[name])), name
    np.testing.assert_allclose(together[name], exact[name], rtol=1e-3, atol=1e-6, err_msg=name)
  at_zero, no_slope = (f(teacher, teacher, temperature) for f in (all_values, all_gradients))
  for name in ALL:
    np.testing.assert_allclose(at_zero[name], 0, atol=2e-6, err_msg=name)
    largest = np.max(np.abs(no_slope[name]), axis=-1)
    np.testing.assert_array_less(largest * np.minimum(temperature, 1), 2e-6, err_msg=name)


def test_traced_temperature_is_the_same_temperature():
  student, teacher = pair()
  traced = all_gradients(student, teacher, np.full(6, 1.7, np.float32))
  constant = jax.jit(lambda s, t: all_gradients(s, t, 1.7))(student, teacher)
  fixed = jax.grad(lambda z: losses.forward_kl(z, teacher, temperature=1.7).sum())(student)
  np.testing.assert_allclose(fixed, constant["forward_kl"], atol=1e-6)
  for name in ALL:
    np.testing.assert_allclose(traced[name], constant[name], atol=1e-6, err_msg=name)


def test_float64_gradient_is_what_float32_rounds():
  student, teacher = (z.astype(jnp.bfloat16) for z in pair((4, 50)))
  rounded = all_gradients(student.astype(np.float32), teacher)
  half = all_gradients(student, teacher)
  with jax.enable_x64(True):
    exact = all_gradients(*(np.asarray(z, np.float64) for z in (student, teacher)))
  for name in ALL:
    assert half[name].dtype == jnp.bfloat16, name
    assert exact[name].dtype == jnp.float64, name
    np.testing.assert_allclose(rounded[name], exact[name], rtol=1e-4, atol=2e-7, err_msg=name)
    # The last step, to the dtype of the logits, is the only one that loses digits.
    np.testing.assert_allclose(
      np.asarray(half[name], np.float32), exact[name], rtol=2**-7, atol=2e-7, err_msg=name
    )


def test_both_models_rule_out_the_same_entries():
  student, teacher = pair()
  one = np.ones(6, np.float32)
  padded = [np.where(np.arange(9) >= 5, np.float32(-np.inf), z) for z in (student, teacher)]
  plain = all_values(student[:, :5], teacher[:, :5], one)
  gradients = all_gradients(*padded, one)
  for name, value in all_values(*padded, one).items():
    np.testing.assert_allclose(value, plain[name], atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(np.asarray(gradients[name])[:, 5:], 0, err_msg=name)


def test_log_divergences_know_hellinger_too():
  student, teacher = pair()
  value = log_divergences.hellinger(log_probabilities(student), log_probabilities(teacher))
  np.testing.assert_array_equal(value, hellinger(student, teacher))
  assert "hellinger" not in DIVERGENCES
