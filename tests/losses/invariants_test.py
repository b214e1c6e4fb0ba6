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


def pair(shape=(3, 9), scale=2.0, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0))
  return tuple(scale * jax.random.normal(key, shape, dtype) for key in keys)


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
    for temperature, expected in ((1.0, 0.278390), (2.0, 0.148420)):
      value = hellinger(z_s, z_t, temperature=temperature)
      np.testing.assert_allclose(value, expected, atol=6e-7)
      p, q = jax.nn.softmax(z_t / temperature), jax.nn.softmax(z_s / temperature)
      affinity = jnp.sum(jnp.sqrt(p * q))
      np.testing.assert_allclose(value, jnp.sqrt(1 - affinity), rtol=1e-12)
      slope = (q * affinity - jnp.sqrt(p * q)) / (4 * value * temperature)
      gradient = jax.grad(hellinger)(z_s, z_t, temperature=temperature)
      np.testing.assert_allclose(gradient, slope, atol=1e-12)
    four_squares = losses.alpha_beta(z_s, z_t, alpha=0.5, beta=0.5)
    np.testing.assert_allclose(4 * hellinger(z_s, z_t) ** 2, four_squares, rtol=1e-12)


def test_hellinger_has_no_infinite_slope_at_identical_models():
  _, teacher = pair()
  # Differentiated operation by operation, q and p differ by rounding, with either sign.
  gradient = jax.grad(lambda z: hellinger(z, teacher, temperature=0.1).sum())
  np.testing.assert_array_equal(gradient(teacher), 0)
  np.testing.assert_array_equal(jax.jit(gradient)(teacher), 0)
  apart = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]])
  value, gradient = jax.jit(jax.value_and_grad(hellinger))(apart[0], apart[1])
  np.testing.assert_allclose(value, 1, atol=1e-6)
  assert bool(jnp.all(jnp.isfinite(gradient)))


def centred(q, d):
  return q * (d - np.sum(q * d))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_gradient_identities_at_other_shares(share):
  with jax.enable_x64(True):
    student, teacher = pair((7,), dtype=jnp.float64)
    p, q = (np.array(jax.nn.softmax(z)) for z in (teacher, student))
    m = share * p + (1 - share) * q
    reverse_m = (1 - share) * p + share * q
    skew = -centred(q, (1 - share) * p / m)
    reverse_skew = centred(q, np.log(q / reverse_m) + 1 - share * q / reverse_m)
    for function, keyword, expected in (
      (losses.jensen_shannon, "beta", centred(q, (1 - share) * np.log(q / m))),
      (losses.skew_forward_kl, "alpha", skew),
      (losses.skew_reverse_kl, "alpha", reverse_skew),
    ):
      gradient = jax.grad(lambda z, f=function, k=keyword: f(z, teacher, **{k: share}))(student)
      np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_slopes_near_identical_models():
  with jax.enable_x64(True):
    teacher, direction = pair((8,), 1.0, jnp.float64)
    student = teacher + 1e-6 * direction
    p, q = jax.nn.softmax(teacher), jax.nn.softmax(student)
    ours = jax.grad(losses.token_wise_kl)(student, teacher)
    np.testing.assert_allclose(ours, 1.5 * (q - p), rtol=1e-4, atol=1e-13)
    jeffreys = jax.grad(lambda z: losses.forward_kl(z, teacher) + losses.reverse_kl(z, teacher))(
      student
    )
    np.testing.assert_allclose(jeffreys, 2 * (q - p), rtol=1e-4, atol=1e-13)


def test_bounds_between_the_distances():
  with jax.enable_x64(True):
    student, teacher = pair((400, 7), 4.0, jnp.float64)
    values = all_values(student, teacher)
    distance, square = values["hellinger"], values["hellinger"] ** 2
    variation = values["total_variation"]
    slack = 1e-12
    assert bool(jnp.all((distance >= 0) & (distance <= 1)))
    assert bool(jnp.all(square <= variation + slack))
    assert bool(jnp.all(variation <= np.sqrt(2) * distance + slack))
    for kl in ("forward_kl", "reverse_kl"):
      assert bool(jnp.all(variation <= jnp.sqrt(values[kl] / 2) + slack))
      assert bool(jnp.all(-2 * jnp.log1p(-square) <= values[kl] + slack))
    for alpha in (0.01, 0.1, 0.5, 0.99):
      for skew in (losses.skew_forward_kl, losses.skew_reverse_kl):
        value = skew(student, teacher, alpha=alpha)
        assert bool(jnp.all((value >= -slack) & (value <= -np.log(alpha) + slack)))
    for beta in (0.1, 0.5, 0.9):  # At most the entropy of the coin that mixes the two.
      value = losses.jensen_shannon(student, teacher, beta=beta)
      most = -beta * np.log(beta) - (1 - beta) * np.log(1 - beta)
      assert bool(jnp.all((value >= -slack) & (value <= most + slack)))
    swapped = all_values(teacher, student)
    for name in ("jensen_shannon", "total_variation", "hellinger"):
      np.testing.assert_allclose(swapped[name], values[name], atol=1e-12, err_msg=name)


def test_hyper_parameters_have_no_jump():
  with jax.enable_x64(True):
    student, teacher = pair((5, 7), dtype=jnp.float64)
    forward, reverse = losses.forward_kl(student, teacher), losses.reverse_kl(student, teacher)
    p, q = jax.nn.softmax(teacher), jax.nn.softmax(student)
    # All three are convex, so the tangent at 0 bounds how far they can be from it: the KL of
    # Jensen-Shannon, the chi-squared divergences of the two skews.
    for function, keyword, at_zero, slope in (
      (losses.jensen_shannon, "beta", 0, forward),
      (losses.skew_forward_kl, "alpha", forward, jnp.sum(p**2 / q, -1) - 1),
      (losses.skew_reverse_kl, "alpha", reverse, jnp.sum(q**2 / p, -1) - 1),
    ):
      for value in (0.0, 1e-9, 1e-6, 1e-3):
        near = function(student, teacher, **{keyword: value})
        assert bool(jnp.all(jnp.abs(near - at_zero) <= value * slope + 1e-14)), (keyword, value)
        far = function(student, teacher, **{keyword: 1 - value})
        assert bool(jnp.all(jnp.abs(far) <= value * (forward + reverse) + 1e-14)), (keyword, value)
    per_beta = losses.jensen_shannon(student, teacher, beta=1e-7) / 1e-7
    np.testing.assert_allclose(per_beta, forward, rtol=1e-4)
    for alpha, beta, limit in ((1.0, 1e-6, forward), (1e-6, 1.0, reverse)):
      near = losses.alpha_beta(student, teacher, alpha=alpha, beta=beta)
      np.testing.assert_allclose(near, limit, rtol=1e-4)
    for alpha in (0.3, 2.0):  # On the axes, the extended definition.
      expected = jnp.sum(q**alpha - p**alpha + alpha * p**alpha * jnp.log(p / q), -1) / alpha**2
      value = losses.alpha_beta(student, teacher, alpha=alpha, beta=0.0)
      np.testing.assert_allclose(value, expected, atol=1e-13)
      mirrored = losses.alpha_beta(teacher, student, alpha=0.0, beta=alpha)
      np.testing.assert_allclose(mirrored, expected, atol=1e-13)


@pytest.mark.parametrize("name", [*SMOOTH, *LABELLED])
def test_second_derivatives(name):
  with jax.enable_x64(True):
    student, teacher = pair((5,), dtype=jnp.float64)
    if name in LABELLED:
      function = jax.jit(lambda z: LABELLED[name](z, teacher, jnp.int32(1)))
    else:
      function = jax.jit(lambda z: ALL[name](z, teacher))
    check_grads(function, (student,), order=2, modes=("rev",))


def test_shift_and_permutation_of_the_vocabulary():
  with jax.enable_x64(True):
    student, teacher = pair((4, 9), dtype=jnp.float64)
    plain, gradients = all_values(student, teacher), all_gradients(student, teacher)
    order = jax.random.permutation(jax.random.key(1), 9)
    shifted = all_values(student + 5.0, teacher - 3.0)
    permuted = all_values(student[:, order], teacher[:, order])
    permuted_gradients = all_gradients(student[:, order], teacher[:, order])
    for name in ALL:
      np.testing.assert_allclose(shifted[name], plain[name], atol=1e-12, err_msg=name)
      np.testing.assert_allclose(permuted[name], plain[name], atol=1e-12, err_msg=name)
      np.testing.assert_allclose(
        permuted_gradients[name], gradients[name][:, order], atol=1e-12, err_msg=name
      )
      # Logits have one degree of freedom too many; the gradient does not use it.
      np.testing.assert_allclose(gradients[name].sum(-1), 0, atol=1e-12, err_msg=name)


def test_temperatures_of_all_sizes_per_token():
  student, teacher = pair((6, 9))
  temperature = jnp.array([0.1, 0.3, 1.0, 3.0, 30.0, 100.0])
  together, gradients = (f(student, teacher, temperature) for f in (all_values, all_gradients))
  with jax.enable_x64(True):
    exact = all_values(*(np.asarray(a, np.float64) for a in (student, teacher, temperature)))
  for name in ALL:
    assert bool(jnp.all(jnp.isfinite(gradients[name]))), name
    np.testing.assert_allclose(together[name], exact[name], rtol=1e-3, atol=1e-6, err_msg=name)
  at_zero, no_slope = (f(teacher, teacher, temperature) for f in (all_values, all_gradients))
  for name in ALL:
    np.testing.assert_allclose(at_zero[name], 0, atol=2e-6, err_msg=name)
    largest = jnp.max(jnp.abs(no_slope[name]), axis=-1)
    np.testing.assert_array_less(largest * jnp.minimum(temperature, 1), 2e-6, err_msg=name)


def test_traced_temperature_is_the_same_temperature():
  student, teacher = pair()
  traced = all_gradients(student, teacher, jnp.full(3, 1.7))
  constant = jax.jit(lambda s, t: all_gradients(s, t, 1.7))(student, teacher)
  fixed = jax.grad(lambda z: losses.forward_kl(z, teacher, temperature=1.7).sum())(student)
  np.testing.assert_allclose(fixed, constant["forward_kl"], atol=1e-6)
  for name in ALL:
    np.testing.assert_allclose(traced[name], constant[name], atol=1e-6, err_msg=name)


def test_float64_gradient_is_what_float32_rounds():
  student, teacher = (z.astype(jnp.bfloat16) for z in pair((4, 50)))
  rounded = all_gradients(student.astype(jnp.float32), teacher)
  half = all_gradients(student, teacher)
  with jax.enable_x64(True):
    exact = all_gradients(*(np.asarray(z, np.float64) for z in (student, teacher)))
  for name in ALL:
    assert half[name].dtype == jnp.bfloat16, name
    assert exact[name].dtype == jnp.float64, name
    np.testing.assert_allclose(rounded[name], exact[name], rtol=1e-4, atol=2e-7, err_msg=name)
    # The last step, to the dtype of the logits, is the only one that loses digits.
    np.testing.assert_allclose(
      half[name].astype(jnp.float32), exact[name], rtol=2**-7, atol=2e-7, err_msg=name
    )


def test_both_models_rule_out_the_same_entries():
  student, teacher = pair((2, 6))
  ruled_out = jnp.arange(6) >= 4
  padded = [jnp.where(ruled_out[None], -jnp.inf, z) for z in (student, teacher)]
  plain = all_values(student[:, :4], teacher[:, :4])
  gradients = all_gradients(*padded)
  for name, value in all_values(*padded).items():
    np.testing.assert_allclose(value, plain[name], atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(gradients[name][:, 4:], 0, err_msg=name)


def test_log_divergences_know_hellinger_too():
  student, teacher = pair()
  value = log_divergences.hellinger(log_probabilities(student), log_probabilities(teacher))
  np.testing.assert_array_equal(value, hellinger(student, teacher))
  assert "hellinger" not in DIVERGENCES
