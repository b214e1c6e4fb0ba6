from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from egad_jax.losses import FEATURE_DISTANCES, cosine_distance, normalized_mse
from egad_jax.losses.features import init_projector, pair_distances, project, take_tokens


def pair(shape=(3, 6), dtype=np.float32):
  generator = np.random.default_rng(0)
  return tuple(generator.normal(size=shape).astype(dtype) for _ in range(2))


def test_cosine_values():
  student = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]], np.float32)
  teacher = np.array([[5.0, 0.0]] * 4, np.float32)
  expected = [0.0, 1.0, 2.0, 1 - np.sqrt(0.5)]
  np.testing.assert_allclose(jax.jit(cosine_distance)(student, teacher), expected, atol=1e-6)


def test_normalized_mse_values():
  student = np.array([[0.0, 2.0], [2.0, 0.0]], np.float32)  # Normalized: (-1, 1) and (1, -1).
  teacher = np.array([[10.0, 30.0]] * 2, np.float32)
  function = jax.jit(normalized_mse)
  np.testing.assert_allclose(function(student, teacher), [0.0, 4.0], atol=1e-6)
  with jax.enable_x64(True):
    student, teacher = pair(dtype=np.float64)

    def layer_norm(x):
      return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

    expected = ((layer_norm(student) - layer_norm(teacher)) ** 2).mean(-1)
    np.testing.assert_allclose(function(student, teacher), expected, rtol=1e-10)


def test_invariances():
  student, teacher = pair()
  cosine, mse = jax.jit(cosine_distance), jax.jit(normalized_mse)
  ten = np.float32(10)
  np.testing.assert_allclose(
    cosine(7 * student, teacher / ten), cosine(student, teacher), rtol=1e-5
  )
  np.testing.assert_allclose(
    mse(7 * student + 3, teacher / ten - 2), mse(student, teacher), rtol=1e-4
  )


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_aligned_features_are_at_zero(name):
  distance = FEATURE_DISTANCES[name]
  student, _ = pair()
  graded = jax.jit(jax.value_and_grad(lambda s, t: distance(s, t).sum()))
  value, gradient = graded(student, 3 * student)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_zero_vectors_are_safe(name):
  graded = jax.jit(jax.value_and_grad(FEATURE_DISTANCES[name]))
  zeros, counted = np.zeros(4, np.float32), np.arange(4, dtype=np.float32)
  for student, teacher in ((zeros, counted), (counted, zeros)):
    value, gradient = graded(student, teacher)
    np.testing.assert_allclose(value, 1.0, atol=1e-6)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_gradients(name):
  distance = FEATURE_DISTANCES[name]
  with jax.enable_x64(True):
    student, teacher = pair(dtype=np.float64)
    check_grads(jax.jit(lambda s: distance(s, teacher)), (student,), order=1)
  student, teacher = pair()
  to_teacher = jax.jit(jax.grad(lambda t: distance(student, t).sum()))(teacher)
  np.testing.assert_array_equal(to_teacher, 0)


@pytest.mark.parametrize("name", FEATURE_DISTANCES)
def test_jit_vmap_and_dtype(name):
  distance = FEATURE_DISTANCES[name]
  student, teacher = pair()
  eager = distance(student, teacher)

  @jax.jit
  def others(student, teacher):
    half = distance(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16))
    return distance(student, teacher), jax.vmap(distance)(student, teacher), half

  jitted, mapped, half = others(student, teacher)
  np.testing.assert_allclose(jitted, eager, atol=1e-6)
  np.testing.assert_allclose(mapped, eager, atol=1e-6)
  assert half.dtype == jnp.float32


compiled_pairs = jax.jit(pair_distances)


def spaces(shape=(2, 5), dtype=np.float32):
  generator = np.random.default_rng(3)
  student = generator.normal(size=(*shape, 4)).astype(dtype)
  teacher = generator.normal(size=(*shape, 6)).astype(dtype)
  return student, teacher, generator.uniform(size=shape).astype(dtype)


def test_pair_distances_pair_by_pair():
  student, teacher, weight = spaces(dtype=np.float64)
  weight = 2 * weight

  @jax.jit
  def compute(student, teacher, weight):
    all_pairs = lambda x: cosine_distance(
      jnp.broadcast_to(x[:, :, None], (2, 5, *x.shape[1:])),
      jnp.broadcast_to(x[:, None], (2, 5, *x.shape[1:])),
    )
    return pair_distances(student, teacher, weight), all_pairs(student), all_pairs(teacher)

  with jax.enable_x64(True):
    values, of_student, of_teacher = map(np.asarray, compute(student, teacher, weight))
  for row in range(2):
    for i in range(5):
      total = mass = 0.0
      for j in set(range(5)) - {i}:
        gap = of_student[row, i, j] - of_teacher[row, i, j]
        total, mass = total + weight[row, j] * gap**2, mass + weight[row, j]
      np.testing.assert_allclose(values[row, i], total / max(mass, 1.0), rtol=1e-10)


def test_pair_distances_invariances():
  student, teacher, weight = spaces()
  values = np.asarray(compiled_pairs(student, teacher, weight))
  generator = np.random.default_rng(4)
  for dim, side in ((4, 0), (6, 1)):
    rotation, _ = np.linalg.qr(generator.normal(size=(dim, dim)))
    moved = [student, teacher]
    moved[side] = (7 * moved[side] @ rotation).astype(np.float32)
    np.testing.assert_allclose(compiled_pairs(*moved, weight), values, atol=1e-5)
  order = np.array([3, 0, 4, 1, 2])
  shuffled = compiled_pairs(student[:, order], teacher[:, order], weight[:, order])
  np.testing.assert_allclose(shuffled, values[:, order], atol=1e-6)
  # Scales may differ from token to token.
  scaled = student * np.exp(generator.normal(size=(2, 5, 1))).astype(np.float32)
  np.testing.assert_allclose(compiled_pairs(scaled, teacher, weight), values, atol=1e-5)


def test_pair_distances_vanish_for_the_same_geometry():
  student, _, weight = spaces()
  embedding, _ = np.linalg.qr(np.random.default_rng(6).normal(size=(6, 6)))
  teacher = (student @ embedding[:4]).astype(np.float32)
  function = lambda s: pair_distances(s, teacher, weight).sum()
  value, gradient = jax.jit(jax.value_and_grad(function))(student)
  np.testing.assert_allclose(value, 0, atol=1e-10)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_pair_distances_gradients():
  with jax.enable_x64(True):
    student, teacher, weight = spaces(dtype=np.float64)
    function = jax.jit(lambda s: pair_distances(s, teacher, weight))
    check_grads(function, (student,), order=1, modes=["rev"])
  student, teacher, weight = spaces()
  function = lambda s, t, w: pair_distances(s, t, w).sum()
  step = jax.jit(jax.grad(function, argnums=(0, 1, 2)))
  gradients = step(student, teacher, weight)
  assert np.any(gradients[0] != 0)
  for gradient in gradients[1:]:
    np.testing.assert_array_equal(gradient, 0)
  student[0, 1] = 0
  assert np.all(np.isfinite(step(student, teacher, weight)[0]))


def test_pair_distances_others():
  student, teacher, weight = spaces()
  much = np.float32(1e4) * weight
  whole = pair_distances(student, teacher, much)

  @jax.jit
  def compute(student, teacher, weight):
    alone = pair_distances(student[:, :1], teacher[:, :1], weight[:, :1])
    half = pair_distances(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16), weight)
    each = jax.vmap(pair_distances)(student, teacher, weight)
    stacked = pair_distances(student[None], teacher[None], weight[None])
    return alone, half, each, stacked

  alone, half, each, stacked = compute(student, teacher, much)
  np.testing.assert_array_equal(alone, 0)
  few = compiled_pairs(student, teacher, np.float32(1e-4) * weight)
  assert float(np.max(few)) < 1e-3 < float(np.min(whole))
  np.testing.assert_allclose(compiled_pairs(student, teacher, much), whole, rtol=1e-5)
  np.testing.assert_allclose(each, whole, rtol=1e-5)
  np.testing.assert_allclose(stacked[0], whole, rtol=1e-6)
  assert half.dtype == jnp.float32


def test_projector():
  key = jax.random.key(0)
  same = init_projector(key, student_dim=5, teacher_dim=5, num_taps=2)
  generator = np.random.default_rng(0)
  features = generator.normal(size=(2, 3, 4, 5)).astype(np.float32)
  compiled = jax.jit(project)
  np.testing.assert_allclose(compiled(same, features), features, atol=1e-6)
  wider = init_projector(key, student_dim=200, teacher_dim=300, num_taps=3)["kernel"]
  assert wider.shape == (3, 200, 300)
  assert wider.dtype == jnp.float32
  wider = np.asarray(wider)
  np.testing.assert_allclose(wider.std(axis=(1, 2)), 200**-0.5, rtol=0.02)
  assert np.abs(wider[0] - wider[1]).max() > 0.01
  kernel, half = generator.normal(size=(2, 5, 7)).astype(np.float32), features.astype(jnp.bfloat16)
  projected = compiled({"kernel": kernel}, half)
  assert projected.dtype == jnp.float32
  expected = np.einsum("ktsd,kde->ktse", half.astype(np.float32), kernel)
  np.testing.assert_allclose(projected, expected, atol=1e-5)


def test_take_tokens():
  features = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 3)
  features[0, 1, 3] = np.nan
  indices, valid = np.array([[2, 0], [1, 3]]), np.array([[True, True], [True, False]])
  taken = np.asarray(jax.jit(take_tokens)(features, indices, valid))
  np.testing.assert_array_equal(taken[0, 0], features[0, 0, [2, 0]])
  np.testing.assert_array_equal(taken[0, 1, 0], features[0, 1, 1])
  np.testing.assert_array_equal(taken[0, 1, 1], 0)
  total = lambda f: take_tokens(f, indices, valid).sum()
  gradient = np.asarray(jax.jit(jax.grad(total))(features))
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


def test_projected_features_are_floating_point():
  with pytest.raises(TypeError, match="student_features must be floating point"):
    project({"kernel": jnp.ones((1, 2, 3))}, jnp.ones((1, 4, 2), jnp.int32))


def test_the_identity_is_float32_where_float64_is_on():
  with jax.enable_x64(True):
    params = init_projector(jax.random.key(0), student_dim=3, teacher_dim=3, num_taps=1)
  assert params["kernel"].dtype == jnp.float32
