"""Divergences between vocabularies: a NumPy account of them, identities, and what is ignored."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses.cross_tokenizer import (
  CROSS_TOKENIZER_KINDS,
  CrossTokenizer,
  common_tokens,
  cross_tokenizer_loss,
  project,
  projected_kl,
  sorted_distance,
)
from egad_jax.losses.spans import SPAN_AVERAGES

# Span 3 is the teacher's alone and span 5 the student's: neither counts.
STUDENT_SPANS = np.array([[1, 1, 2, 4, 4, 4, 5, 0], [0, 1, 2, 2, 0, 0, 0, 0]], np.int32)
TEACHER_SPANS = np.array([[1, 2, 2, 3, 4, 4], [1, 1, 2, 0, 0, 0]], np.int32)
INSIDE = (
  np.array([[1, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0]], bool),
  np.array([[1, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0]], bool),
)
VS, VT = 13, 11
# Averaging comes before the divergence, so not every combination has to be compiled.
CASES = [
  *(("p_kl", average) for average in SPAN_AVERAGES),
  ("h_kl", "logprob"),
  ("h_kl", "prob"),
  ("uld", "prob"),
]


def make_projection() -> tuple[np.ndarray, np.ndarray]:
  """[13, 3]: exact rows, a collision, spread rows and the unmapped row 12."""
  generator = np.random.default_rng(3)
  ids = ((np.arange(VS)[:, None] + np.array([0, 4, 7])) % VT).astype(np.int32)
  weights = generator.dirichlet(np.ones(3), VS).astype(np.float32)
  weights = -np.sort(-weights, axis=1)
  for row, index in enumerate((4, 7, 0, 9)):
    ids[row], weights[row] = (index, 0, 0), (1, 0, 0)
  ids[4], weights[4] = (7, 1, 2), (0.7, 0.2, 0.1)  # Loses 7 to row 1.
  ids[5], weights[5] = (3, 1, 2), (0.8, 0.1, 0.1)
  weights[12] = 0
  return ids, weights


PROJECTION = make_projection()
eager_loss = functools.partial(cross_tokenizer_loss, projection=PROJECTION)
OPTIONS = ("kind", "temperature", "span_average", "teacher_top_k", "minimum_weight")
loss_of = jax.jit(eager_loss, static_argnames=OPTIONS)


@functools.partial(jax.jit, static_argnums=0)
def step(kind, *rows):
  """Loss and its gradients by both models' logits."""
  function = lambda *rows: eager_loss(*rows, kind=kind, teacher_top_k=5)[0]
  return jax.value_and_grad(function, argnums=(0, 1))(*rows)


@pytest.fixture
def rows():
  generator = np.random.default_rng(5)
  normal = lambda *shape: (2 * generator.normal(size=shape)).astype(np.float32)
  return (normal(2, 8, VS), normal(2, 6, VT), STUDENT_SPANS, TEACHER_SPANS)


def dense(projection, size=VT):
  matrix = np.zeros((len(projection[0]), size))
  for row, (ids, weights) in enumerate(zip(*projection, strict=True)):
    for index, weight in zip(ids, weights, strict=True):
      matrix[row, index] += weight
  return matrix


def numpy_loss(rows, kind, average, temperature, top_k):
  """Span by span in float64, from the formulas of the documentation."""
  softmax = lambda z: (
    np.exp(z - z.max(-1, keepdims=True))
    / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)
  )
  averages = {
    "prob": lambda z: softmax(z).mean(0),
    "logprob": lambda z: softmax(np.log(softmax(z)).mean(0)),
    "chain_rule": lambda z: softmax(z)[0],
  }

  def l1(q, p, cut=None):
    q, p = (np.sort(np.pad(x, (0, 20 - len(x))))[::-1][:cut] for x in (q, p))
    return np.abs(q - p).sum()

  values = []
  for z_s, z_t, c_s, c_t in zip(*(np.asarray(x, np.float64) for x in rows), strict=True):
    valid = sorted(set(c_s) & set(c_t) - {0})
    all_p = {c: averages[average](z_t[c_t == c] / temperature) for c in valid}
    kept = np.argsort(-np.max(list(all_p.values()), axis=0))[:top_k]
    for span, p in all_p.items():
      q = averages[average](z_s[c_s == span] / temperature)
      if kind == "p_kl":
        q, p = (q @ dense(PROJECTION))[kept], p[kept]
        q, p = q / q.sum(), p / p.sum()
        values.append((p * np.log(p / q)).sum())
      elif kind == "uld":
        values.append(l1(q, p))
      else:
        s, t = [0, 1, 2, 3, 5], [4, 7, 0, 9, 3]
        uncommon = np.delete(q, s), np.delete(p, t)
        values.append((p[t] * np.log(p[t] / q[s])).sum() + l1(*uncommon, top_k))
  return np.mean(values)


@pytest.mark.parametrize(("kind", "average"), CASES)
def test_value(rows, kind, average):
  # No row after the first six is heavy, because the reference spells the common pairs out.
  assert PROJECTION[1][6:, 0].max() < 0.8
  options = {"teacher_top_k": 5, "temperature": 1.7, "minimum_weight": 0.8}
  loss, metrics = loss_of(*rows, kind=kind, span_average=average, **options)
  np.testing.assert_allclose(loss, numpy_loss(rows, kind, average, 1.7, 5), rtol=2e-5)
  assert metrics["num_spans"] == 5


def test_a_top_k_of_everything_is_none(rows):
  expected = float(loss_of(*rows)[0])
  np.testing.assert_array_equal(loss_of(*rows, teacher_top_k=VT)[0], expected)
  few = float(loss_of(*rows, teacher_top_k=3)[0])
  assert abs(few - expected) > 1e-3
  shift = np.arange(6, dtype=np.float32)[None, :, None]
  shifted = loss_of(rows[0], rows[1] + shift, *rows[2:], teacher_top_k=3)[0]
  np.testing.assert_allclose(shifted, few, rtol=1e-5)


@pytest.mark.parametrize(
  ("kind", "average", "order"),
  [
    ("p_kl", "prob", np.arange(11)),
    ("p_kl", "logprob", np.random.default_rng(0).permutation(11)),
    ("h_kl", "chain_rule", np.arange(11)),
    ("h_kl", "prob", np.random.default_rng(1).permutation(11)),
  ],
)
def test_one_vocabulary_token_by_token_is_forward_kl(batch, kind, average, order):
  """W = I: forward KL; W a permutation: forward KL against the permuted teacher."""
  spans = np.broadcast_to(np.arange(1, 9), (3, 8))
  projection = order[:, None].astype(np.int32), np.ones((11, 1), np.float32)

  def ours(student):
    arguments = (student, batch.teacher, spans, spans)
    return cross_tokenizer_loss(
      *arguments, projection=projection, kind=kind, span_average=average, temperature=1.3
    )[0]

  def expected(student):
    return losses.forward_kl(student, batch.teacher[..., order], temperature=1.3).mean()

  values = [jax.jit(jax.value_and_grad(f))(batch.student) for f in (ours, expected)]
  np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-5)
  np.testing.assert_allclose(values[0][1], values[1][1], atol=1e-6)


@pytest.mark.parametrize(("kind", "average"), CASES)
def test_identical_models_agree_on_long_spans(rows, kind, average):
  identity = np.arange(VS)[:, None].astype(np.int32), np.ones((VS, 1), np.float32)

  @jax.jit
  @jax.value_and_grad
  def function(student):
    arguments = (student, rows[0], STUDENT_SPANS, STUDENT_SPANS)
    return cross_tokenizer_loss(
      *arguments, projection=identity, kind=kind, span_average=average, teacher_top_k=6
    )[0]

  value, gradient = function(rows[0])
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_gradient_of_p_kl_in_closed_form():
  with jax.enable_x64(True):
    generator = np.random.default_rng(1)
    z_s, z_t = generator.normal(size=(3, VS)), generator.normal(size=(2, VT))
    spans = np.array([1, 1, 1]), np.array([1, 1])
    gradient = jax.jit(jax.grad(lambda z: eager_loss(z, z_t, *spans)[0]))(z_s)
    q = np.exp(z_s) / np.exp(z_s).sum(1, keepdims=True)
    p = (np.exp(z_t) / np.exp(z_t).sum(1, keepdims=True)).mean(0)
    matrix = dense(PROJECTION)
    projected = q.mean(0) @ matrix
    slope = matrix @ (1 / projected.sum() - p / projected) / 3
    expected = q * (slope - (q * slope).sum(1, keepdims=True))
    assert gradient.dtype == jnp.float64
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_h_kl_pulls_every_uncommon_logit_down():
  """Proposition 1: the KL on common tokens has gradient q_j M_C at the student's others."""
  generator = np.random.default_rng(2)
  z_s, z_t = generator.normal(size=(1, VS)), generator.normal(size=(1, VT))
  q, p = (np.exp(z[0]) / np.exp(z[0]).sum() for z in (z_s, z_t))
  one = np.array([1])
  student, teacher = common_tokens(PROJECTION)
  others = np.setdiff1d(np.arange(VS), student)
  rest = p[np.setdiff1d(np.arange(VT), teacher)]

  def common_part(z):
    sorted_part = sorted_distance(jax.nn.softmax(z)[0, others], rest)
    return eager_loss(z, z_t, one, one, kind="h_kl")[0] - sorted_part

  with jax.enable_x64(True):
    gradient = np.asarray(jax.jit(jax.grad(common_part))(z_s))[0, others]
  np.testing.assert_allclose(gradient, q[others] * p[teacher].sum(), rtol=1e-9)
  assert np.all(gradient >= 0)


def test_mass_without_a_counterpart():
  generator = np.random.default_rng(0)
  z_s, z_t = (generator.normal(size=(4, size)).astype(np.float32) for size in (VS, VT))
  q = np.exp(z_s) / np.exp(z_s).sum(1, keepdims=True)
  projected = project(jnp.asarray(q), PROJECTION, VT)
  np.testing.assert_allclose(np.sum(projected, axis=1), 1 - q[:, 12], rtol=1e-6)
  np.testing.assert_allclose(projected, q @ dense(PROJECTION), atol=1e-6)
  traced = jax.jit(lambda q, w: project(q, w, VT))(q, PROJECTION)
  np.testing.assert_allclose(traced, q @ dense(PROJECTION), atol=1e-6)
  # P-KL is normalized: such mass changes nothing.
  spans = np.arange(1, 5)
  plain = loss_of(z_s, z_t, spans, spans)[0]
  more = z_s + 2 * (np.arange(VS) == 12).astype(np.float32)
  np.testing.assert_allclose(loss_of(more, z_t, spans, spans)[0], plain, rtol=1e-5)
  nothing = PROJECTION[0], np.zeros_like(PROJECTION[1])
  function = lambda z: cross_tokenizer_loss(z, z_t, spans, spans, projection=nothing)[0]
  value, gradient = jax.jit(jax.value_and_grad(function))(z_s)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("options", [{}, {"teacher_top_k": VT + 2}])
def test_teacher_entries_out_of_reach_change_nothing(options):
  softmax = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)
  generator = np.random.default_rng(0)
  z_s, z_t = (generator.normal(size=(4, size)).astype(np.float32) for size in (VS, VT + 3))
  spans, lost = np.arange(1, 5), np.arange(VT + 3) >= VT
  function = lambda z, t: eager_loss(z, t, spans, spans, **options)[0]
  step = jax.jit(jax.value_and_grad(function))
  value, gradient = step(z_s, z_t)
  q, p = softmax(z_s) @ dense(PROJECTION), softmax(z_t[:, :VT])
  if options:  # What is left out is the entry that no span finds likely, of all of them.
    keep = np.arange(VT) != np.argmin(np.max(softmax(z_t), axis=0))
    p, q = (np.where(keep, x, 0) for x in (p, q))
    p = p / p.sum(1, keepdims=True)
  q = q / q.sum(1, keepdims=True)
  log_ratio = np.log(np.divide(p, q, out=np.ones_like(p), where=p > 0))
  np.testing.assert_allclose(value, np.sum(p * log_ratio, axis=1).mean(), rtol=1e-5)
  again = step(z_s, z_t + 3 * lost.astype(np.float32))
  np.testing.assert_allclose(again[0], value, rtol=1e-5)
  np.testing.assert_allclose(again[1], gradient, rtol=1e-4, atol=1e-7)


def test_common_tokens():
  strict, relaxed = (common_tokens(PROJECTION, weight) for weight in (1.0, 0.6))
  assert list(zip(*map(np.ndarray.tolist, strict), strict=True)) == [(0, 4), (1, 7), (2, 0), (3, 9)]
  assert set(zip(*strict, strict=True)) < set(zip(*relaxed, strict=True))
  assert 4 not in relaxed[0]
  assert (5, 3) in set(zip(*map(np.ndarray.tolist, relaxed), strict=True))
  for ids in relaxed:
    assert len(np.unique(ids)) == len(ids)
  # The heavier claim wins although its id is higher.
  claims = np.array([[2], [2]], np.int32), np.array([[0.7], [0.9]], np.float32)
  assert [x.tolist() for x in common_tokens(claims)] == [[1], [2]]
  # Equal claims: the lowest id. A rounded sum still counts as 1.
  ids = np.array([[2], [2], [1]], np.int32)
  weights = np.array([[1.0], [1.0], [1 - 1e-7]], np.float32)
  assert [x.tolist() for x in common_tokens((ids, weights), 1.0)] == [[0, 2], [2, 1]]
  with pytest.raises(TypeError, match="close over it"):
    jax.jit(lambda p: common_tokens(p)[0])(PROJECTION)


@pytest.mark.parametrize("kind", CROSS_TOKENIZER_KINDS)
def test_positions_outside_valid_spans_change_nothing(rows, kind):
  value, gradients = step(kind, *rows)
  assert np.isfinite(value)
  poisoned = [
    np.where(inside[..., None], logits, np.float32(np.nan))
    for inside, logits in zip(INSIDE, rows[:2], strict=True)
  ]
  again = step(kind, *poisoned, *rows[2:])
  np.testing.assert_array_equal(again[0], value)
  for one, other in zip(again[1], gradients, strict=True):
    np.testing.assert_array_equal(one, other)
  np.testing.assert_array_equal(np.where(INSIDE[0][..., None], 0, gradients[0]), 0)
  assert (np.abs(gradients[0]).sum(-1) > 0)[INSIDE[0]].all()
  np.testing.assert_array_equal(gradients[1], 0)
  value, gradients = step(kind, *poisoned, np.zeros_like(rows[2]), rows[3])
  assert value == 0
  np.testing.assert_array_equal(gradients[0], 0)


@pytest.mark.parametrize("kind", CROSS_TOKENIZER_KINDS)
def test_extreme_logits_stay_finite(rows, kind):
  hide = lambda z: np.where((np.arange(z.shape[-1]) // 3) == 1, np.float32(-np.inf), z)
  student, teacher, *spans = rows
  for logits in (
    (1e4 * student, 1e4 * teacher),
    (1e4 * student, teacher),
    (hide(student), teacher),
    (student, hide(teacher)),
    (hide(student), hide(teacher)),
  ):
    value, (gradient, _) = step(kind, *logits, *spans)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_entropies_are_each_model_s_own(rows):
  spans = [np.broadcast_to(np.arange(1, z.shape[1] + 1), z.shape[:2]) for z in rows[:2]]
  # As many spans as the shorter row has positions, one position each.
  _, metrics = loss_of(*rows[:2], *spans)
  entropy = jax.jit(lambda z: losses.token_entropy(z).mean())
  for name, logits in zip(("student_entropy", "teacher_entropy"), rows[:2], strict=True):
    expected = entropy(logits[:, : rows[1].shape[1]])
    np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)


@pytest.mark.slow
def test_program(rows):
  """jit = eager, vmap = loop, any leading axes, bfloat16 in."""
  function = functools.partial(eager_loss, teacher_top_k=5)

  @jax.jit
  def compute(*rows):
    one_by_one = [function(*(x[i] for x in rows)) for i in range(2)]
    half = function(*(z.astype(jnp.bfloat16) for z in rows[:2]), *rows[2:])[0]
    gradient = jax.grad(lambda z: sum(function(z, *rows[1:])[1].values()))(rows[0])
    entropies = [losses.token_entropy(z).mean() for z in rows[:2]]
    return function(*rows)[0], one_by_one, jax.vmap(function)(*rows)[0], half, gradient, entropies

  more = [x.reshape(1, 2, 1, *x.shape[1:]) for x in rows]
  loss, metrics = function(*more)
  jitted, one_by_one, mapped, half, gradient, entropies = compute(*rows)
  np.testing.assert_allclose(jitted, loss, rtol=1e-6)
  counts = [metrics["num_spans"] for _, metrics in one_by_one]
  assert counts == [3, 2]
  alone = [float(loss) for loss, _ in one_by_one]
  np.testing.assert_allclose(loss, (3 * alone[0] + 2 * alone[1]) / 5, rtol=1e-6)
  for name, entropy in zip(("student_entropy", "teacher_entropy"), entropies, strict=True):
    assert 0.5 * float(entropy) < float(metrics[name]) < 2 * float(entropy)
  np.testing.assert_allclose(mapped, alone, rtol=1e-6)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, loss, rtol=0.03)
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "kl"}, "kind must be one of p_kl, h_kl, uld, got 'kl'"),
    ({"span_average": "mean"}, "span_average must be one of prob, logprob, chain_rule"),
    ({"teacher_top_k": 0}, "teacher_top_k must be at least 1 or None, got 0"),
    ({"minimum_weight": 0.5}, r"minimum_weight must be in \(0.5, 1\], got 0.5"),
  ],
)
def test_options_out_of_range(rows, options, message):
  with pytest.raises(ValueError, match=message):
    CrossTokenizer(**options)
  with pytest.raises(ValueError, match=message):
    loss_of(*rows, **options)


def test_misuse(rows):
  student, teacher, student_spans, teacher_spans = rows
  with pytest.raises(ValueError, match="student_spans must have the shape of student_logits"):
    loss_of(student, teacher, student_spans[:, :5], teacher_spans)
  with pytest.raises(ValueError, match="same leading axes"):
    loss_of(student, teacher, student_spans[:1], teacher_spans)
  with pytest.raises(TypeError, match="teacher_spans must be integers"):
    loss_of(student, teacher, student_spans, teacher_spans.astype(float))
  with pytest.raises(TypeError, match="student_logits must be floating point"):
    loss_of(student.astype(int), teacher, student_spans, teacher_spans)
  with pytest.raises(ValueError, match=r"shape \[9, k\], a row for each entry"):
    loss_of(student[..., :9], teacher, student_spans, teacher_spans)
  with pytest.raises(ValueError, match="teacher id 10, beyond the 9 entries"):
    loss_of(student, teacher[..., :9], student_spans, teacher_spans)


def test_ids_below_0_are_refused(rows):
  with pytest.raises(ValueError, match="projection leads to teacher id -1; ids start at 0"):
    cross_tokenizer_loss(*rows, projection=(PROJECTION[0] - 1, PROJECTION[1]))


def test_a_span_without_teacher_mass_on_the_compared_entries_adds_nothing():
  log_p = jnp.array([[0.0, -100.0, -100.0], [-1.0, -0.8, -1.7]])
  projected = jnp.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
  compared = np.array([False, True, True])
  function = jax.jit(jax.value_and_grad(lambda q: projected_kl(log_p, q, compared).sum()))
  value, gradient = function(projected)
  p, q = np.exp([-0.8, -1.7]), np.array([0.5, 0.3])
  p, q = p / p.sum(), q / q.sum()
  np.testing.assert_allclose(value, np.sum(p * np.log(p / q)), rtol=1e-5)
  np.testing.assert_array_equal(gradient[0], 0)
  np.testing.assert_allclose(gradient[1], [0, *((1 - p / q) / 0.8)], rtol=1e-5)


def test_entropies_are_means_over_the_valid_spans(rows):
  _, metrics = loss_of(*rows)
  averages = jax.jit(losses.span_log_average)
  for name, logits, spans in zip(
    ("student_entropy", "teacher_entropy"), rows[:2], rows[2:], strict=True
  ):
    log = np.asarray(averages(logits, spans))
    entropy = -(np.exp(log) * log).sum(-1)
    # Spans 1, 2 and 4 of the first row, 1 and 2 of the second.
    valid = [entropy[0, 0], entropy[0, 1], entropy[0, 3], entropy[1, 0], entropy[1, 1]]
    np.testing.assert_allclose(metrics[name], np.mean(valid), rtol=1e-5)


def test_the_margin_of_a_weight_belongs_to_the_pairs():
  weight = 0.6 - 1e-6
  claims = np.array([[2], [1]], np.int32), np.array([[weight], [np.nextafter(weight, 0)]])
  assert [x.tolist() for x in common_tokens(claims)] == [[0], [2]]


def test_the_largest_entries_of_any_leading_axes():
  q, p = np.random.default_rng(0).dirichlet(np.ones(9), (2, 2, 3)).astype(np.float32)
  expected = np.abs(np.sort(q)[..., :-5:-1] - np.sort(p)[..., :-5:-1]).sum(-1)
  found = sorted_distance(jnp.asarray(q), jnp.asarray(p), largest=4)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
