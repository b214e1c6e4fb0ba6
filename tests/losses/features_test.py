from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from egad_jax.losses import FEATURE_DISTANCES, cosine_distance, normalized_mse
from egad_jax.losses.features import init_projector, pair_distances, project, take_tokens


def pair(shape=(3, 6), dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0))
  return tuple(jax.random.normal(key, shape, dtype) for key in keys)


def test_cosine_values():
  student = jnp.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]])
  teacher = jnp.array([[5.0, 0.0]] * 4)
  expected = [0.0, 1.0, 2.0, 1 - np.sqrt(0.5)]
  np.testing.assert_allclose(cosine_distance(student, teacher), expected, atol=1e-6)


def test_normalized_mse_values():
  student = jnp.array([[0.0, 2.0], [2.0, 0.0]])  # Normalized: (-1, 1) and (1, -1).
  teacher = jnp.array([[10.0, 30.0]] * 2)
  np.testing.assert_allclose(normalized_mse(student, teacher), [0.0, 4.0], atol=1e-6)
  with jax.enable_x64(True):
    student, teacher = pair(dtype=jnp.float64)

    def layer_norm(x):
      return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    expected = ((layer_norm(student) - layer_norm(teacher)) ** 2).mean(-1)
    np.testing.assert_allclose(normalized_mse(student, teacher), expected, rtol=1e-10)


def test_invariances():
  student, teacher = pair()
  cosine, mse = cosine_distance(student, teacher), normalized_mse(student, teacher)
  np.testing.assert_allclose(cosine_distance(7 * student, 0.1 * teacher), cosine, rtol=1e-5)
  scaled = normalized_mse(7 * student + 3, 0.1 * teacher - 2)
  np.testing.assert_allclose(scaled, mse, rtol=1e-4)


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_aligned_features_are_at_zero(name):
  distance = FEATURE_DISTANCES[name]
  student, _ = pair()
  value, gradient = jax.value_and_grad(lambda s: distance(s, 3 * student).sum())(student)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_zero_vectors_are_safe(name):
  distance = FEATURE_DISTANCES[name]
  for student, teacher in ((jnp.zeros(4), jnp.arange(4.0)), (jnp.arange(4.0), jnp.zeros(4))):
    value, gradient = jax.value_and_grad(distance)(student, teacher)
    np.testing.assert_allclose(value, 1.0, atol=1e-6)
    assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_gradients(name):
  distance = FEATURE_DISTANCES[name]
  with jax.enable_x64(True):
    student, teacher = pair(dtype=jnp.float64)
    check_grads(lambda s: distance(s, teacher), (student,), order=1)
  student, teacher = pair()
  to_teacher = jax.grad(lambda t: distance(student, t).sum())(teacher)
  np.testing.assert_array_equal(to_teacher, 0)


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_jit_vmap_and_dtype(name):
  distance = FEATURE_DISTANCES[name]
  student, teacher = pair()
  eager = distance(student, teacher)
  np.testing.assert_allclose(jax.jit(distance)(student, teacher), eager, atol=1e-6)
  np.testing.assert_allclose(jax.vmap(distance)(student, teacher), eager, atol=1e-6)
  assert distance(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16)).dtype == jnp.float32


def spaces(shape=(2, 5), dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(3), 3)
  student = jax.random.normal(keys[0], (*shape, 4), dtype)
  teacher = jax.random.normal(keys[1], (*shape, 6), dtype)
  return student, teacher, jax.random.uniform(keys[2], shape, dtype)


def test_pair_distances_pair_by_pair():
  with jax.enable_x64(True):
    student, teacher, weight = spaces(dtype=jnp.float64)
    weight = 2 * weight
    values = pair_distances(student, teacher, weight)
    for row in range(2):
      for i in range(5):
        total = mass = 0.0
        for j in set(range(5)) - {i}:
          gap = cosine_distance(student[row, i], student[row, j]) - cosine_distance(
            teacher[row, i], teacher[row, j]
          )
          total, mass = total + weight[row, j] * gap**2, mass + weight[row, j]
        np.testing.assert_allclose(values[row, i], total / max(mass, 1.0), rtol=1e-10)


def test_pair_distances_invariances():
  student, teacher, weight = spaces()
  values = pair_distances(student, teacher, weight)
  for dim, side in ((4, 0), (6, 1)):
    rotation, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(dim), (dim, dim)))
    moved = [student, teacher]
    moved[side] = 7 * moved[side] @ rotation
    np.testing.assert_allclose(pair_distances(*moved, weight), values, atol=1e-5)
  order = jnp.array([3, 0, 4, 1, 2])
  shuffled = pair_distances(student[:, order], teacher[:, order], weight[:, order])
  np.testing.assert_allclose(shuffled, values[:, order], atol=1e-6)
  # Scales may differ from token to token.
  scale = jnp.exp(jax.random.normal(jax.random.key(5), (2, 5, 1)))
  np.testing.assert_allclose(pair_distances(scale * student, teacher, weight), values, atol=1e-5)


def test_pair_distances_vanish_for_the_same_geometry():
  student, _, weight = spaces()
  embedding, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(6), (6, 6)))
  teacher = student @ embedding[:4]
  function = lambda s: pair_distances(s, teacher, weight).sum()
  value, gradient = jax.value_and_grad(function)(student)
  np.testing.assert_allclose(value, 0, atol=1e-10)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_pair_distances_gradients():
  with jax.enable_x64(True):
    student, teacher, weight = spaces(dtype=jnp.float64)
    check_grads(lambda s: pair_distances(s, teacher, weight), (student,), order=1, modes=["rev"])
  student, teacher, weight = spaces()
  function = lambda s, t, w: pair_distances(s, t, w).sum()
  gradients = jax.grad(function, argnums=(0, 1, 2))(student, teacher, weight)
  assert bool(jnp.any(gradients[0] != 0))
  for gradient in gradients[1:]:
    np.testing.assert_array_equal(gradient, 0)
  zeros = jax.grad(lambda s: function(s, teacher, weight))(student.at[0, 1].set(0))
  assert bool(jnp.all(jnp.isfinite(zeros)))


def test_pair_distances_others():
  student, teacher, weight = spaces()
  np.testing.assert_array_equal(pair_distances(student[:, :1], teacher[:, :1], weight[:, :1]), 0)
  few = pair_distances(student, teacher, 1e-4 * weight)
  whole = pair_distances(student, teacher, 1e4 * weight)
  assert float(few.max()) < 1e-3 < float(whole.min())
  function = jax.jit(pair_distances)
  np.testing.assert_allclose(function(student, teacher, 1e4 * weight), whole, rtol=1e-5)
  each = jax.vmap(function)(student, teacher, 1e4 * weight)
  np.testing.assert_allclose(each, whole, rtol=1e-5)
  stacked = pair_distances(student[None], teacher[None], 1e4 * weight[None])
  np.testing.assert_allclose(stacked[0], whole, rtol=1e-6)
  half = pair_distances(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16), weight)
  assert half.dtype == jnp.float32


def test_projector():
  key = jax.random.key(0)
  same = init_projector(key, student_dim=5, teacher_dim=5, num_taps=2)
  features = jax.random.normal(key, (2, 3, 4, 5))
  np.testing.assert_allclose(project(same, features), features, atol=1e-6)
  wider = init_projector(key, student_dim=200, teacher_dim=300, num_taps=3)["kernel"]
  assert wider.shape == (3, 200, 300)
  assert wider.dtype == jnp.float32
  np.testing.assert_allclose(wider.std(axis=(1, 2)), 200**-0.5, rtol=0.02)
  assert float(jnp.max(jnp.abs(wider[0] - wider[1]))) > 0.01
  kernel = jax.random.normal(key, (2, 5, 7))
  projected = project({"kernel": kernel}, features.astype(jnp.bfloat16))
  assert projected.dtype == jnp.float32
  expected = jnp.stack([features[k].astype(jnp.bfloat16) @ kernel[k] for k in range(2)])
  np.testing.assert_allclose(projected, expected, atol=1e-5)


def test_take_tokens():
  features = jnp.arange(24.0).reshape(1, 2, 4, 3).at[0, 1, 3].set(jnp.nan)
  indices, valid = jnp.array([[2, 0], [1, 3]]), jnp.array([[True, True], [True, False]])
  taken = take_tokens(features, indices, valid)
  np.testing.assert_array_equal(taken[0, 0], features[0, 0, jnp.array([2, 0])])
  np.testing.assert_array_equal(taken[0, 1, 0], features[0, 1, 1])
  np.testing.assert_array_equal(taken[0, 1, 1], 0)
  gradient = jax.grad(lambda f: take_tokens(f, indices, valid).sum())(features)
  assert gradient[0, 1, 3].tolist() == [0, 0, 0]
  assert gradient[0, 1, 1].tolist() == [1, 1, 1]


def test_misuse():
  with pytest.raises(ValueError, match="already projected"):
    cosine_distance(jnp.ones((2, 3)), jnp.ones((2, 4)))
  with pytest.raises(ValueError, match="differ in dim alone, got"):
    pair_distances(jnp.ones((2, 3)), jnp.ones((3, 3)), jnp.ones(2))
  with pytest.raises(ValueError, match="differ in dim alone, got"):
    pair_distances(jnp.ones(3), jnp.ones(3), jnp.ones(()))
  with pytest.raises(TypeError, match="student_features must be floating point"):
    normalized_mse(jnp.ones(3, int), jnp.ones(3))
