"""The terms of a token graph against NumPy, closed-form gradients and what must not matter."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from egad_jax.losses.features import unit
from egad_jax.losses.token_graph import (
  SMALLEST_SIGMA,
  contextual_relation,
  inner_relation,
  local_relation,
  median_distance,
  nearest_neighbours,
  squared_distances,
)

GRAPHS, NODES, DS, DT = 2, 7, 4, 5
TEACHER = np.array([[2.0, 0.0], [0.6, 0.8], [0.0, 3.0]], np.float32)
STUDENT = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]], np.float32)
THREE = np.ones(3, bool)

local3 = functools.partial(local_relation, neighbours=3)
contextual = functools.partial(contextual_relation, temperature=0.3)
inner = functools.partial(inner_relation, temperature=0.25)
RELATIONS = {
  "local": local3,
  "reversed": functools.partial(local3, direction="teacher_to_student"),
  "given_sigma": functools.partial(local3, sigma=0.3),
  "contextual": contextual,
  "inner": inner,
}
JITTED = {name: jax.jit(relation) for name, relation in RELATIONS.items()}


@functools.partial(jax.jit, static_argnames="name")
def value_and_gradients(name, student, teacher, mask):
  """The sum over the nodes of the mask, and its gradients to student and teacher."""
  total = lambda s, t: jnp.sum(RELATIONS[name](s, t, mask), where=mask)
  return jax.value_and_grad(total, argnums=(0, 1))(student, teacher)


def features(seed=0, student_dim=DT, dtype=np.float32):
  """student [2, 7, Ds], teacher [2, 7, Dt], mask [2, 7] with 5 and 7 valid nodes."""
  rng = np.random.default_rng(seed)
  student = rng.normal(size=(GRAPHS, NODES, student_dim)).astype(dtype)
  teacher = rng.normal(size=(GRAPHS, NODES, DT)).astype(dtype)
  mask = np.ones((GRAPHS, NODES), bool)
  mask[0, [1, 4]] = False
  return student, teacher, mask


def numpy_cosines(vectors, others):
  norm = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)
  return norm(vectors) @ norm(others).T


def numpy_softmax(logits):
  return np.exp(logits) / np.exp(logits).sum()


def numpy_relations(student, teacher, mask, sigma=None):
  """Per node of one graph {relation: [nodes]}, by loops over the valid nodes."""
  nodes = np.flatnonzero(mask)
  distance_s, distance_t = (2 - 2 * numpy_cosines(x, x) for x in (student, teacher))
  cosine_s, cosine_t, across = (
    numpy_cosines(*pair) for pair in ((student,) * 2, (teacher,) * 2, (student, teacher))
  )
  near = {
    i: sorted((j for j in nodes if j != i), key=lambda j: distance_t[i, j])[:3] for i in nodes
  }
  median = np.median([distance_t[i, j] for i in nodes for j in near[i]])
  answers = {name: np.zeros(len(mask)) for name in RELATIONS}
  for i in nodes:
    for name, width in (("local", median), ("reversed", median), ("given_sigma", 0.3)):
      q, p = (numpy_softmax(np.exp(-d[i, near[i]] / 2 / width)) for d in (distance_s, distance_t))
      kl = (p * np.log(p / q)) if name == "reversed" else (q * np.log(q / p))
      answers[name][i] = kl.sum()
    own = list(nodes).index(i)
    answers["contextual"][i] = -np.log(numpy_softmax(across[i, nodes] / 0.3)[own])
    maps = [numpy_softmax(c[i, nodes] / 0.25) for c in (cosine_s, cosine_t)]
    answers["inner"][i] = np.mean((maps[0] - maps[1]) ** 2)
  return answers


@pytest.mark.parametrize(
  ("relation", "expected"),
  [
    (functools.partial(local_relation, neighbours=2), [0.065139, 0.006695, 0.029993]),
    (
      functools.partial(local_relation, neighbours=2, direction="teacher_to_student"),
      [0.065477, 0.006771, 0.029401],
    ),
    (functools.partial(local_relation, neighbours=9, sigma=0.5), [0.066574, 0.00486, 0.035357]),
    (inner, [0.025032, 0.011656, 0.016422]),
  ],
)
def test_golden_values(relation, expected):
  np.testing.assert_allclose(jax.jit(relation)(STUDENT, TEACHER, THREE), expected, atol=6e-7)


def test_golden_contrast():
  compute = jax.jit(functools.partial(contextual_relation, temperature=0.5))
  answer = compute(STUDENT[:, :2], TEACHER, THREE)
  np.testing.assert_allclose(answer, [0.460373, 0.990924, 1.324593], atol=6e-7)


@pytest.mark.parametrize("name", RELATIONS)
def test_against_numpy(name):
  student, teacher, mask = features()
  answer = np.where(mask, JITTED[name](student, teacher, mask), 0)
  for graph in range(GRAPHS):
    wide = (x[graph].astype(np.float64) for x in (student, teacher))
    expected = numpy_relations(*wide, mask[graph])[name]
    np.testing.assert_allclose(answer[graph], expected, rtol=2e-5, atol=1e-8)


def test_neighbours_are_the_nearest_valid_others_lower_index_first():
  points = np.array([[0.0], [1.0], [-1.0], [1.0], [0.1]], np.float32)
  mask = np.array([True, True, True, True, False])
  compute = lambda x: nearest_neighbours(squared_distances(x), mask, neighbours=2)
  indices, valid = jax.jit(compute)(points)
  np.testing.assert_array_equal(indices[:4], [[1, 2], [3, 0], [0, 1], [1, 0]])
  np.testing.assert_array_equal(valid, np.array([[1, 1]] * 4 + [[0, 0]], bool))


def test_fewer_valid_nodes_than_neighbours():
  student, teacher, mask = features()
  few = mask & (np.arange(NODES) < 3)[None]  # 2 and 3 valid nodes.
  compute = lambda x: nearest_neighbours(squared_distances(x), few, neighbours=4)[1]
  valid = np.asarray(jax.jit(compute)(teacher))
  np.testing.assert_array_equal(valid.sum(-1), np.where(few, few.sum(-1, keepdims=True) - 1, 0))
  crowd = jax.jit(functools.partial(local_relation, neighbours=NODES + 5))
  crowded = np.asarray(crowd(student, teacher, few))
  for graph, count in enumerate((2, 3)):
    alone = [x[graph][few[graph]] for x in (student, teacher, few)]
    expected = jax.jit(functools.partial(local_relation, neighbours=count - 1))(*alone)
    np.testing.assert_allclose(crowded[graph][few[graph]], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", RELATIONS)
def test_a_lone_node_has_no_relations(name):
  student, teacher, mask = features()
  for arguments in (
    (student[:, :1], teacher[:, :1], mask[:, :1]),
    (student, teacher, np.arange(NODES)[None].repeat(2, 0) == 2),
  ):
    value, (gradient, _) = value_and_gradients(name, *arguments)
    assert value == 0
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_edges_are_symmetric_exactly_between_mutual_neighbours():
  _, teacher, mask = features(3)

  @jax.jit
  def neighbours_of(teacher, mask):
    distances = squared_distances(unit(teacher))
    return distances, *nearest_neighbours(distances, mask, neighbours=2)

  distances, indices, valid = map(np.asarray, neighbours_of(teacher[0], mask[0]))
  edges = np.zeros((NODES, NODES))
  for i, j in itertools.product(range(NODES), range(2)):
    if valid[i, j]:
      edges[i, indices[i, j]] = np.exp(-distances[i, indices[i, j]])
  linked = edges > 0
  assert (linked & ~linked.T).any()
  assert (linked & linked.T).any()
  np.testing.assert_array_equal(np.isclose(edges, edges.T, rtol=1e-6) & linked, linked & linked.T)


@pytest.mark.parametrize("name", ["local", "reversed", "given_sigma", "inner"])
def test_equal_features_have_no_loss_and_no_gradient(name):
  _, teacher, mask = features()
  value, (gradient, _) = value_and_gradients(name, teacher, teacher, mask)
  np.testing.assert_allclose(value, 0, atol=1e-12)  # Two fusions of one formula, in float32.
  np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("name", RELATIONS)
def test_joint_permutation_and_scale_per_token_change_nothing(name):
  student, teacher, mask = features(1)
  expected = JITTED[name](student, teacher, mask)
  order = np.random.default_rng(5).permutation(NODES)
  permuted = JITTED[name](student[:, order], teacher[:, order], mask[:, order])
  at_nodes = lambda values, mask: np.where(mask, values, 0)
  np.testing.assert_allclose(
    at_nodes(permuted, mask[:, order]), at_nodes(expected, mask)[:, order], rtol=1e-5, atol=1e-8
  )
  scale = np.exp(np.random.default_rng(6).normal(size=(GRAPHS, NODES, 1))).astype(np.float32)
  scaled = JITTED[name](1e4 * scale * student, teacher / scale, mask)
  np.testing.assert_allclose(at_nodes(scaled, mask), at_nodes(expected, mask), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["local", "reversed", "given_sigma", "inner"])
def test_rotations_of_either_space_and_wider_spaces_change_nothing(name):
  student, teacher, mask = features(2, student_dim=DS)
  rng = np.random.default_rng(7)
  rotate = lambda x: x @ np.linalg.qr(rng.normal(size=(x.shape[-1],) * 2))[0].astype(np.float32)
  expected = np.where(mask, JITTED[name](student, teacher, mask), 0)
  wider = np.pad(student, ((0, 0), (0, 0), (0, DT - DS)))
  for s, t in ((rotate(student), teacher), (student, rotate(teacher)), (rotate(wider), teacher)):
    answer = np.where(mask, JITTED[name](s, t, mask), 0)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-6)


def test_contrast_is_least_where_the_matched_similarity_dominates():
  teacher, mask = np.eye(4, dtype=np.float32), np.ones(4, bool)
  orders = list(itertools.permutations(range(4)))
  students = teacher[np.array(orders)]
  per_node = jax.jit(jax.vmap(lambda s: contextual(s, teacher, mask)))(students)
  losses = np.asarray(per_node).sum(axis=-1)
  assert orders[int(np.argmin(losses))] == (0, 1, 2, 3)
  np.testing.assert_allclose(losses[0], 4 * np.log1p(3 * np.exp(-1 / 0.3)), rtol=1e-5)
  assert np.sort(losses)[1] - losses[0] > 1
  cold = jax.jit(contextual_relation)(teacher, teacher, mask, temperature=0.01)
  np.testing.assert_allclose(cold, 0, atol=1e-6)


@pytest.mark.parametrize("name", RELATIONS)
def test_duplicates_and_zero_vectors_have_finite_gradients(name):
  student, teacher, mask = features()
  student[0, 3], teacher[0, 3] = student[0, 2], teacher[0, 2]
  student[1], teacher[1] = student[1, :1], teacher[1, :1]
  student[0, 0] = teacher[0, 5] = 0
  value, (gradient, _) = value_and_gradients(name, student, teacher, mask)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  assert np.abs(gradient)[0].max() > 0


@pytest.mark.parametrize("name", RELATIONS)
def test_gradient_is_that_of_finite_differences(name):
  with jax.enable_x64(True):
    student, teacher, mask = features(dtype=np.float64)
    function = lambda s: jnp.sum(RELATIONS[name](s, teacher, mask), where=mask)
    check_grads(jax.jit(function), (student,), order=1, modes=["rev"], rtol=1e-6)


def tangent(gradient, vectors):
  """A gradient at unit vectors, pulled back to the vectors that were normalised."""
  norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
  units = vectors / norm
  return (gradient - (gradient * units).sum(-1, keepdims=True) * units) / norm


def test_closed_form_gradient_of_the_local_term():
  with jax.enable_x64(True):
    student, teacher, mask = (x[1] for x in features(dtype=np.float64))
    units = student / np.linalg.norm(student, axis=-1, keepdims=True)
    distance_s, distance_t = (2 - 2 * numpy_cosines(x, x) for x in (student, teacher))
    expected = np.zeros_like(student)
    for i in range(NODES):
      near = np.argsort(np.where(np.arange(NODES) == i, np.inf, distance_t[i]))[:3]
      edges = np.exp(-distance_s[i, near] / 0.6)
      q, p = numpy_softmax(edges), numpy_softmax(np.exp(-distance_t[i, near] / 0.6))
      gap = np.log(q / p)
      slope = q * (gap - (q * gap).sum()) * -edges / 0.6
      for j, s in zip(near, slope, strict=True):
        expected[i] += s * 2 * (units[i] - units[j])
        expected[j] -= s * 2 * (units[i] - units[j])
    total = lambda s: local3(s, teacher, mask, sigma=0.3).sum()
    gradient = jax.jit(jax.grad(total))(jnp.array(student))
    np.testing.assert_allclose(gradient, tangent(expected, student), atol=1e-12)


def test_closed_form_gradient_of_the_contrast():
  with jax.enable_x64(True):
    student, teacher, mask = (x[1] for x in features(dtype=np.float64))
    q = np.stack([numpy_softmax(row / 0.3) for row in numpy_cosines(student, teacher)])
    units = teacher / np.linalg.norm(teacher, axis=-1, keepdims=True)
    expected = tangent((q - np.eye(NODES)) @ units / 0.3, student)
    total = lambda s: contextual(s, teacher, mask).sum()
    gradient = jax.jit(jax.grad(total))(jnp.array(student))
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("name", RELATIONS)
def test_the_teacher_gets_no_gradient(name):
  student, teacher, mask = features()
  _, (_, gradient) = value_and_gradients(name, student, teacher, mask)
  np.testing.assert_array_equal(gradient, 0)


def test_median_sigma_and_temperature_are_detached():
  student, teacher, mask = (x[0] for x in features())

  @jax.jit
  def of_teacher(teacher, mask):
    distances = squared_distances(unit(teacher))
    indices, valid = nearest_neighbours(distances, mask, neighbours=3)
    near = jnp.take_along_axis(distances, indices, axis=-1)
    return near, valid, median_distance(near, valid)

  near, valid, sigma = of_teacher(teacher, mask)
  np.testing.assert_allclose(sigma, np.median(np.array(near)[np.array(valid)]), rtol=1e-6)
  np.testing.assert_array_equal(jax.jit(jax.grad(lambda d: median_distance(d, valid)))(near), 0)
  by_median, by_number = (
    jax.jit(jax.grad(lambda s, w=w: jnp.sum(local3(s, teacher, mask, sigma=w), where=mask)))(
      student
    )
    for w in (None, float(sigma))
  )
  np.testing.assert_allclose(by_median, by_number, rtol=1e-5, atol=1e-8)
  total = lambda tau: contextual_relation(teacher, teacher, mask, temperature=tau).sum()
  assert jax.jit(jax.grad(total))(0.5) == 0


def test_median_of_nothing_and_of_duplicates():
  compute = jax.jit(median_distance)
  zeros = np.zeros((2, 3, 2), np.float32)
  assert compute(zeros, np.zeros((2, 3, 2), bool)).tolist() == [1.0, 1.0]
  floor = compute(zeros, np.ones((2, 3, 2), bool))
  np.testing.assert_allclose(floor, SMALLEST_SIGMA, rtol=1e-6)


@pytest.mark.short_form(1)
@pytest.mark.parametrize("name", RELATIONS)
def test_jit_vmap_and_leading_axes(name):
  student, teacher, mask = features(4)
  relation = RELATIONS[name]
  eager = np.asarray(relation(student, teacher, mask))
  close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-8)
  close(JITTED[name](student, teacher, mask), eager)
  close(jax.jit(jax.vmap(relation))(student, teacher, mask), eager)
  for graph in range(GRAPHS):
    close(JITTED[name](student[graph], teacher[graph], mask[graph]), eager[graph])
  more = JITTED[name](student[None, :, None], teacher[None, :, None], mask[None, :, None])
  assert more.shape == (1, GRAPHS, 1, NODES)
  close(np.asarray(more)[0, :, 0], eager)


def test_median_of_an_even_number():
  valid = jnp.array([[True, True, False]])
  assert median_distance(jnp.array([[1.0, 2.0, 9.0]]), valid) == 1.5


def test_no_distance_is_below_zero():
  vectors = np.random.default_rng(0).normal(size=(64, 7)).astype(np.float32)
  twice = np.concatenate([vectors, vectors])
  assert np.asarray(jax.jit(squared_distances)(twice)).min() == 0
