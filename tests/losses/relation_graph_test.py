"""The graph loss as a mean over valid nodes, and TRG as a method: nodes, normaliser, cost."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses.features import project
from egad_jax.losses.relation_graph import RelationGraph, relation_graph_loss
from egad_jax.losses.token_graph import contextual_relation, inner_relation, local_relation
from egad_jax.methods import make_egad, make_vanilla_kd
from egad_jax.methods.relation_graph import make_trg

TAPS, BATCH, SEQ, DS, DT = 2, 4, 8, 4, 5
GRAPH = RelationGraph(
  nodes=3, neighbours=2, local_weight=0.7, contextual_weight=0.2, inner_weight=1.5
)
ONLY = {
  term: RelationGraph(**{f"{other}_weight": float(other == term) for other in TERMS})
  for TERMS in [("local", "contextual", "inner")]
  for term in TERMS
}


@pytest.fixture
def graphs():
  """student [2, 7, 4], its projection and teacher [2, 7, 5], mask [2, 7]."""
  rng = np.random.default_rng(0)
  arrays = [rng.normal(size=(2, 7, d)).astype(np.float32) for d in (DS, DT, DT)]
  return *arrays, np.array([[1, 0, 1, 1, 0, 1, 1], [1] * 7], bool)


@pytest.fixture
def rows():
  """params, student taps, teacher taps, stats and mask of four rows of 8 tokens."""
  rng = np.random.default_rng(1)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {"kernel": normal(TAPS, DS, DT) / np.float32(DS**0.5)}
  student, teacher = normal(TAPS, BATCH, SEQ, DS), normal(TAPS, BATCH, SEQ, DT)
  entropy = rng.random((BATCH, SEQ), np.float32)
  stats = {"teacher_entropy": entropy, "hard": (entropy > 0.3).astype(np.float32)}
  mask = rng.random((BATCH, SEQ)) < 0.8
  mask[3, 2:] = False
  return params, student, teacher, stats, mask


@functools.cache
def jitted_feature_loss(graph=GRAPH):
  return jax.jit(make_trg(graph=graph, hard_fraction=0.4).feature_loss)


@functools.partial(jax.jit, static_argnames="options")
def graph_loss(graphs, elapsed=0.5, options=GRAPH):
  student, projected, teacher, mask = graphs
  return relation_graph_loss(
    student,
    teacher,
    mask,
    elapsed=elapsed,
    projected_student_features=projected,
    options=options,
  )


def poison(x, mask):
  return np.where(mask[..., None], x, np.float32(np.nan))


def test_loss_is_the_weighted_mean_over_all_valid_nodes(graphs):
  student, projected, teacher, mask = graphs
  loss, metrics = graph_loss(graphs)
  values = jax.jit(
    lambda: {
      "local": local_relation(student, teacher, mask, neighbours=2),
      "contextual": contextual_relation(projected, teacher, mask, temperature=0.1**0.5),
      "inner": inner_relation(student, teacher, mask, temperature=0.25),
    }
  )()
  assert set(metrics) == set(values)
  for name, value in values.items():
    np.testing.assert_allclose(metrics[name], np.array(value)[mask].mean(), rtol=1e-5)
  weighted = 0.7 * metrics["local"] + 0.2 * metrics["contextual"] + 1.5 * metrics["inner"]
  np.testing.assert_allclose(loss, weighted, rtol=1e-6)


def test_golden_value():
  teacher = np.array([[2.0, 0.0], [0.6, 0.8], [0.0, 3.0]], np.float32)
  student = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.float32)
  options = RelationGraph(neighbours=2, contextual_start=0.5, inner_weight=2.0)
  loss, metrics = graph_loss((student, student, teacher, np.ones(3, bool)), 0.0, options)
  expected = {"local": 0.033942, "contextual": 0.92529633, "inner": 0.01770345}
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, atol=6e-7)
  np.testing.assert_allclose(loss, 0.03394246 + 0.92529633 + 2 * 0.01770345, atol=1e-6)


def test_masked_nodes_change_nothing(graphs):
  student, projected, teacher, mask = graphs
  function = lambda s, p, t, m: graph_loss((s, p, t, m))[0]
  step = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))
  value, gradients = jax.tree.map(np.asarray, step(student, projected, teacher, mask))
  again, poisoned = step(*(poison(x, mask) for x in graphs[:3]), mask)
  assert again == value
  for gradient, other in zip(gradients, poisoned, strict=True):
    np.testing.assert_array_equal(other, gradient)
    np.testing.assert_array_equal(gradient[~mask], 0)
  for gradient in gradients[:2]:
    assert np.abs(gradient[mask]).min() > 0
  np.testing.assert_array_equal(gradients[2], 0)
  first = np.array([[True], [False]])
  alone, _ = step(*graphs[:3], mask & first)
  other, _ = step(*graphs[:3], mask & ~first)
  np.testing.assert_allclose(value, (5 * alone + 7 * other) / 12, rtol=1e-5)
  nothing, gradients = step(*(x * np.float32(np.nan) for x in graphs[:3]), np.zeros_like(mask))
  assert nothing == 0
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("term", ONLY)
def test_a_term_without_weight_is_absent(graphs, term):
  loss, metrics = graph_loss(graphs, options=ONLY[term])
  assert loss == metrics[term] > 0
  assert {name for name, value in metrics.items() if value} == {term}
  student, projected, teacher, mask = graphs
  if term != "contextual":  # Then widths may differ, and no projection is asked for.
    same, _ = graph_loss((student, None, teacher, mask), options=ONLY[term])
    assert same == loss
  function = lambda s, p: graph_loss((s, p, teacher, mask), options=ONLY[term])[0]
  gradients = jax.jit(jax.grad(function, argnums=(0, 1)))(student, projected)
  to_student, to_projected = map(np.asarray, gradients)
  assert np.any(to_student != 0) == (term != "contextual")
  assert np.any(to_projected != 0) == (term == "contextual")


def test_features_stand_in_for_a_missing_projection(graphs):
  _, projected, teacher, mask = graphs
  given, _ = graph_loss((projected, projected, teacher, mask))
  left_out, _ = graph_loss((projected, None, teacher, mask))
  assert left_out == given


def test_temperature_falls_by_the_same_factor():
  graph = RelationGraph(contextual_start=2.0, contextual_end=0.02)
  answers = [graph.temperature(jnp.float32(e)) for e in (-1.0, 0.0, 0.25, 0.5, 1.0, 1.5)]
  np.testing.assert_allclose(answers, [2, 2, 2 / 10**0.5, 0.2, 0.02, 0.02], rtol=1e-5)
  assert jax.grad(graph.temperature)(0.5) == 0
  constant = RelationGraph(contextual_start=0.3, contextual_end=0.3)
  np.testing.assert_allclose(constant.temperature(0.7), 0.3, rtol=1e-6)


def test_elapsed_moves_the_contextual_term_alone(graphs):
  start, end = (graph_loss(graphs, elapsed=e)[1] for e in (0.0, 1.0))
  assert start["local"] == end["local"]
  assert start["inner"] == end["inner"]
  assert start["contextual"] < end["contextual"]  # Of features that do not match.
  student, projected, teacher, mask = graphs
  fixed = RelationGraph(**{**GRAPH.__dict__, "contextual_start": 0.2, "contextual_end": 0.2})
  traced, constant = (
    jax.jit(jax.grad(lambda p, o=o, e=e: graph_loss((student, p, teacher, mask), e, o)[0]))(
      projected
    )
    for o, e in ((GRAPH, np.log10(np.float32(5))), (fixed, 0.0))
  )
  np.testing.assert_allclose(traced, constant, rtol=1e-4, atol=1e-7)


def test_dtypes_and_large_features(graphs):
  half = [x.astype(jnp.bfloat16) for x in graphs[:3]]
  loss, metrics = graph_loss((*half, graphs[3]))
  assert {loss.dtype, *(m.dtype for m in metrics.values())} == {jnp.dtype(jnp.float32)}
  wide, _ = graph_loss((*(x.astype(np.float32) for x in half), graphs[3]))
  assert loss == wide
  large, _ = graph_loss((*(np.float32(1e4) * x for x in graphs[:3]), graphs[3]))
  np.testing.assert_allclose(large, graph_loss(graphs)[0], rtol=1e-4)
  with jax.enable_x64(True):
    doubles = (*(np.asarray(x, np.float64) for x in graphs[:3]), np.asarray(graphs[3]))
    assert graph_loss(doubles)[0].dtype == jnp.float64


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"nodes": 0}, "nodes must be an integer >= 1, got 0"),
    ({"neighbours": 2.5}, "neighbours must be an integer >= 1, got 2.5"),
    ({"sigma": 0.0}, "sigma must be > 0 or None, got 0.0"),
    ({"local_weight": -1.0}, "local_weight must be >= 0, got -1.0"),
    ({"contextual_weight": float("nan")}, "contextual_weight must be >= 0, got nan"),
    ({"inner_weight": -0.5}, "inner_weight must be >= 0, got -0.5"),
    ({"contextual_start": 0.0}, "contextual_start must be > 0, got 0.0"),
    ({"contextual_end": -1.0}, "contextual_end must be > 0, got -1.0"),
    ({"inner_temperature": 0.0}, "inner_temperature must be > 0, got 0.0"),
    ({"direction": "up"}, "direction must be one of student_to_teacher, teacher_to_student, got"),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(ValueError, match=message):
    RelationGraph(**options)


def test_misuse(graphs):
  student, projected, teacher, mask = graphs
  with pytest.raises(
    ValueError, match=r"shapes \[..., nodes, dim\] that differ in dim alone, got \(2, 5"
  ):
    graph_loss((student[:, :5], projected, teacher, mask))
  with pytest.raises(ValueError, match=r"that differ in dim alone, got .* and \(2, 5\)"):
    graph_loss((student, projected, teacher[:, 0], mask))
  with pytest.raises(ValueError, match=r"differ in dim alone, got \(4,\) and \(5,\)"):
    graph_loss((student[0, 0], projected[0, 0], teacher[0, 0], mask[0, 0]))
  with pytest.raises(ValueError, match="or set contextual_weight to 0"):
    relation_graph_loss(student, teacher, mask, elapsed=0.0)
  with pytest.raises(ValueError, match=r"elapsed must be a scalar, got shape \(2,\)"):
    graph_loss(graphs, elapsed=jnp.zeros(2))
  with pytest.raises(TypeError, match="teacher_features must be floating point, got int32"):
    graph_loss((student, projected, teacher.astype(np.int32), mask))
  with pytest.raises(ValueError, match=r"hard_fraction must be in \(0, 1\], got 0.0"):
    make_trg(hard_fraction=0.0)
  with pytest.raises(ValueError, match="half_life must be a positive"):
    make_trg(half_life=0.0)


def test_token_loss_is_vanilla_kd_and_hard_is_egads(batch, context):
  options = {"divergence": "reverse_kl", "ce_weight": 0.1}
  trg = make_trg(temperature=2.0, hard_fraction=0.3, **options)
  student, teacher = np.array(batch.student), np.array(batch.teacher)
  student[0, 0, 1] = teacher[0, :2, 1] = -np.inf
  student[0, 1] *= 1e4
  teacher[1, 1] *= 1e4
  arguments = (*(x.reshape(24, -1) for x in (student, teacher)), batch.labels.reshape(24), {})
  vanilla = make_vanilla_kd(temperature=2.0, **options)
  loss, stats = jax.jit(trg.loss.function)(*arguments, context)
  expected, _ = jax.jit(vanilla.loss.function)(*arguments, context)
  assert np.isfinite(loss).all()
  np.testing.assert_array_equal(loss, expected)
  position = context.state.entropy.position(stats["teacher_entropy"])
  np.testing.assert_array_equal(stats["hard"], position >= 0.7)
  assert 0 < stats["hard"].sum() < 24


def numpy_nodes(stats, mask, most):
  """The hardest valid hard tokens of each row, by sorting."""
  hard, entropy = np.array((stats["hard"] > 0) & mask), np.array(stats["teacher_entropy"])
  chosen = [[i for i in np.argsort(-entropy[r]) if hard[r, i]][:most] for r in range(len(hard))]
  return chosen, hard


def test_a_graph_per_row_of_its_hardest_tokens(rows, context):
  # One row has more hard tokens to expect than nodes.
  params, student, teacher, stats, mask = rows
  mask[0] = True
  total, metrics = jitted_feature_loss()(*rows, context)
  chosen, hard = numpy_nodes(stats, mask, 3)
  projected = np.asarray(jax.jit(project)(params, student))
  expected = dict.fromkeys(("local", "contextual", "inner"), 0.0)
  for row, nodes in enumerate(chosen):
    is_node = np.tile(np.isin(np.arange(SEQ), nodes), (TAPS, 1))
    features = [x[:, row] for x in (student, projected, teacher)]
    _, means = graph_loss((*features, is_node), context.elapsed)
    tokens = int(mask[row].sum())
    for name in expected:
      expected[name] += tokens / min(3, 0.4 * tokens) * len(nodes) * float(means[name])
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], [value, mask.sum()], rtol=1e-5)
  weighted = 0.7 * expected["local"] + 0.2 * expected["contextual"] + 1.5 * expected["inner"]
  np.testing.assert_allclose(total, weighted, rtol=1e-5)
  kept = sum(map(len, chosen))
  assert hard.sum() > kept
  np.testing.assert_array_equal(metrics["hard_overflow"], [hard.sum() - kept, hard.sum()])


def test_expected_nodes_everywhere_give_the_mean_over_nodes(rows, context):
  """Per target token, the sum is then what `relation_graph_loss` calls the loss."""
  params, student, teacher, stats, _ = rows
  hard = (np.arange(SEQ) < 4).astype(np.float32)[None].repeat(BATCH, 0)
  mask = np.ones((BATCH, SEQ), bool)
  method = make_trg(hard_fraction=0.5, graph=RelationGraph(nodes=6))
  stats = stats | {"hard": hard}
  total, _ = jax.jit(method.feature_loss)(params, student, teacher, stats, mask, context)
  projected = jax.jit(project)(params, student)
  features = (np.asarray(x)[:, :, :4] for x in (student, projected, teacher))
  expected, _ = graph_loss(
    (*features, np.ones((TAPS, BATCH, 4), bool)), context.elapsed, RelationGraph()
  )
  np.testing.assert_allclose(total / mask.sum(), expected, rtol=1e-5)


@pytest.mark.slow
def test_micro_batches_and_shards_change_nothing(rows, context):
  params, student, teacher, stats, mask = rows
  step = jax.jit(jax.value_and_grad(make_trg(graph=GRAPH).feature_loss, has_aux=True))

  def on(of_rows):
    return step(
      params,
      *(x[:, of_rows] for x in (student, teacher)),
      *jax.tree.map(lambda x: x[of_rows], (stats, mask)),
      context,
    )

  whole = on(np.arange(BATCH))
  parts = jax.tree.map(lambda *x: sum(x), *(on(np.array([i, i + 2])) for i in range(2)))
  mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  place = lambda x, *axes: jax.device_put(
    x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  )
  sharded = step(
    place(params),
    *(place(x, None, "data") for x in (student, teacher)),
    *jax.tree.map(lambda x: place(x, "data"), (stats, mask)),
    place(context),
  )
  for other in (parts, sharded):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), other, whole)


def test_the_order_of_a_row_does_not_matter(rows, context):
  params, student, teacher, stats, mask = rows
  order = np.random.default_rng(0).permutation(SEQ)
  expected = jitted_feature_loss()(*rows, context)
  moved = jitted_feature_loss()(
    params,
    *(x[:, :, order] for x in (student, teacher)),
    *jax.tree.map(lambda x: x[:, order], (stats, mask)),
    context,
  )
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), moved, expected)


def test_gradient_to_student_hard_tokens_and_projector_only(rows, context):
  params, student, teacher, stats, mask = rows
  function = make_trg(graph=GRAPH).feature_loss
  step = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))
  (value, metrics), (to_params, to_student, to_teacher) = step(*rows, context)
  np.testing.assert_array_equal(to_teacher, 0)
  assert np.abs(to_params["kernel"]).max() > 0
  is_node = np.zeros((BATCH, SEQ), bool)
  for row, nodes in enumerate(numpy_nodes(stats, mask, 3)[0]):
    is_node[row, nodes] = len(nodes) > 1  # A lone node is related to nothing.
  np.testing.assert_array_equal((np.asarray(to_student)[0] != 0).any(-1), is_node)
  (again, others), gradients = step(
    params,
    *(poison(x, mask) for x in (student, teacher)),
    {name: np.where(mask, x, np.float32(np.nan)) for name, x in stats.items()},
    mask,
    context,
  )
  assert again == value
  for one, other in (
    (metrics, others),
    (to_params, gradients[0]),
    (to_student, gradients[1]),
  ):
    jax.tree.map(np.testing.assert_array_equal, one, other)
  nowhere = student * np.float32(np.nan)
  (nothing, _), gradients = step(params, nowhere, teacher, stats, np.zeros_like(mask), context)
  assert nothing == 0
  for gradient in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(gradient, 0)


def test_params_only_for_the_contextual_term(rows, context):
  sizes = {"student_dim": DS, "teacher_dim": DT, "num_taps": TAPS}
  init = lambda **weights: make_trg(graph=RelationGraph(**weights)).init_params(
    jax.random.key(0), **sizes
  )
  assert init()["kernel"].shape == (TAPS, DS, DT)
  assert init(contextual_weight=0.0) == {}
  _, student, teacher, stats, mask = rows
  total, metrics = jitted_feature_loss(ONLY["inner"])({}, student, teacher, stats, mask, context)
  assert total == metrics["inner"][0] > 0
  assert metrics["contextual"][0] == metrics["local"][0] == 0
  off = RelationGraph(local_weight=0.0, contextual_weight=0.0, inner_weight=0.0)
  assert make_trg(graph=off).feature_loss is None
  assert make_egad(branch=None).feature_loss is None


@pytest.mark.slow
def test_jit_equals_eager(rows, context):
  eager = make_trg(graph=GRAPH, hard_fraction=0.4).feature_loss(*rows, context)
  jitted = jitted_feature_loss()(*rows, context)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), jitted, eager)


def flops(batch, seq, dim, context, nodes=16):
  method = make_trg(graph=RelationGraph(nodes=nodes))
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  params = jax.eval_shape(
    lambda: method.init_params(jax.random.key(0), student_dim=dim, teacher_dim=dim, num_taps=1)
  )
  stats = {name: shape(batch, seq) for name in ("teacher_entropy", "hard")}
  taps, mask = shape(1, batch, seq, dim), jax.ShapeDtypeStruct((batch, seq), bool)
  step = jax.jit(jax.value_and_grad(method.feature_loss, has_aux=True))
  compiled = step.lower(params, taps, taps, stats, mask, context).compile()
  return compiled.cost_analysis()["flops"]


@pytest.mark.slow
def test_cost_is_linear_in_rows_and_does_not_grow_with_their_length(context):
  base = flops(2, 64, 64, context)
  np.testing.assert_allclose(flops(8, 64, 64, context) / base, 4, rtol=0.05)
  # A longer row costs a few comparisons per token to pick its nodes: less than one pass over the
  # token's 64 features, let alone over its pairs.
  assert 0 < flops(2, 1024, 64, context) - base < 20 * 2 * (1024 - 64)


def test_metrics_are_detached(graphs):
  student, projected, teacher, mask = graphs

  def total(student, projected):
    _, metrics = relation_graph_loss(
      student, teacher, mask, elapsed=0.3, projected_student_features=projected, options=GRAPH
    )
    return sum(metrics.values())

  for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(student, projected):
    np.testing.assert_array_equal(gradient, 0)


def test_metrics_of_the_method_are_detached(rows, context):
  params, *taps_and_more = rows
  function = make_trg(graph=GRAPH).feature_loss

  @jax.jit
  @jax.grad
  def gradient_of(params):
    _, metrics = function(params, *taps_and_more, context)
    return sum(total for total, _ in metrics.values())

  np.testing.assert_array_equal(gradient_of(params)["kernel"], 0)
