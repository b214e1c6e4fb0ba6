"""X-Token as a method: EGAD's mechanisms span by span, statistics, and what is ignored."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses import Curriculum, Temperature, curriculum_weights
from egad_jax.losses.cross_tokenizer import cross_tokenizer_loss, project
from egad_jax.losses.spans import span_log_average
from egad_jax.methods import make_vanilla_kd
from egad_jax.methods.x_token import make_x_token
from tests.head.dense_spans import dense_span_loss

VS, VT = 13, 11
PROJECTION = (
  ((np.arange(VS)[:, None] + np.array([0, 4])) % VT).astype(np.int32),
  np.array([[1.0, 0.0]] * 6 + [[0.7, 0.3]] * 6 + [[0.0, 0.0]], np.float32),
)
IDENTITY = np.arange(11)[:, None].astype(np.int32), np.ones((11, 1), np.float32)
# Span 3 is the teacher's alone and span 5 the student's.
STUDENT_SPANS = np.array([1, 1, 2, 4, 4, 4, 5, 0], np.int32)
TEACHER_SPANS = np.array([1, 2, 2, 3, 4, 4], np.int32)
VALID = np.array([True, True, False, True, False, False])
make = functools.partial(make_x_token, projection=PROJECTION)
loss_of = jax.jit(
  functools.partial(cross_tokenizer_loss, projection=PROJECTION), static_argnames="kind"
)
EGAD = {"curriculum": Curriculum(), "temperature": Temperature(base=1.5)}
STATS = {
  "teacher_entropy",
  "student_entropy",
  "temperature",
  "weight",
  "hard",
  "distillation_loss",
  "cross_entropy",
  "student_nll",
  "student_tokens",
  "teacher_tokens",
  "forward_kl",
  "agreement",
  "uncovered",
}


@pytest.fixture
def row():
  generator = np.random.default_rng(5)
  scale = np.array([4.0, 0.3, 0.3, 1.0, 1.5, 1.5])[:, None]
  return (
    (2 * generator.normal(size=(8, VS))).astype(np.float32),
    (scale * generator.normal(size=(6, VT))).astype(np.float32),
    generator.integers(0, VS, 8, np.int32),
    STUDENT_SPANS,
    TEACHER_SPANS,
  )


def span_by_span(row, kind="p_kl", temperatures=(1.0, 1.0, 1.0)):
  """`cross_tokenizer_loss` of each valid span alone."""
  student, teacher, _, *spans = row
  values = []
  for i, temperature in zip((1, 2, 4), temperatures, strict=True):
    alone = [np.where(c == i, 1, 0).astype(np.int32) for c in spans]
    values.append(loss_of(student, teacher, *alone, kind=kind, temperature=temperature)[0])
  return np.array(values)


def test_stats(row, context):
  function = jax.jit(dense_span_loss(make(**EGAD).loss))
  loss, stats = jax.tree.map(np.asarray, function(*row, context))
  assert set(stats) == STATS
  for stat in (loss, *stats.values()):
    assert stat.shape == (6,)
    assert stat.dtype == jnp.float32
    np.testing.assert_array_equal(stat[~VALID], 0)
  # A compiler may fuse product and sum, which are then rounded once; not compiled they are exact,
  # see `test_equals_itself_not_compiled`.
  expected = stats["distillation_loss"] + np.float32(0.1) * stats["cross_entropy"]
  np.testing.assert_array_max_ulp(loss, expected, maxulp=1)
  np.testing.assert_array_equal(stats["student_tokens"], [2, 1, 0, 3, 0, 0])
  np.testing.assert_array_equal(stats["teacher_tokens"], [1, 2, 0, 2, 0, 0])
  np.testing.assert_array_equal(stats["hard"], 0)

  @jax.jit
  def averages(student, teacher):
    log_q, log_p = span_log_average(student, row[3]), span_log_average(teacher, row[4])
    return log_q, log_p, project(jnp.exp(log_q), PROJECTION, VT), jax.nn.log_softmax(student)

  log_q, log_p, projected, log_softmax = map(np.asarray, averages(*row[:2]))
  for name, log in (("student_entropy", log_q), ("teacher_entropy", log_p)):
    entropy = -(np.exp(log) * log).sum(-1)
    np.testing.assert_allclose(stats[name][VALID], entropy[:6][VALID], rtol=1e-5)
  token_nll = -log_softmax[np.arange(8), row[2]]
  sums = [token_nll[:2].sum(), token_nll[2], token_nll[3:6].sum()]
  np.testing.assert_allclose(stats["student_nll"][VALID], sums, rtol=1e-5)
  np.testing.assert_array_equal(stats["student_nll"], stats["cross_entropy"])
  np.testing.assert_allclose(stats["forward_kl"][VALID], span_by_span(row), rtol=1e-5)
  agree = projected.argmax(-1)[:6] == log_p.argmax(-1)[:6]
  np.testing.assert_array_equal(stats["agreement"][VALID], agree[VALID])


def test_uncovered_is_the_teachers_mass_where_no_student_entry_leads(row, context):
  ids, weights = PROJECTION
  weights = np.where((ids == 3) | (ids == 8), 0, weights).astype(np.float32)
  method = make_x_token(projection=(ids, weights))
  _, stats = jax.jit(dense_span_loss(method.loss))(*row, context)
  probabilities = np.exp(jax.jit(span_log_average)(row[1], row[4]))[:6]
  expected = probabilities[:, [3, 8]].sum(-1)
  assert 0 < expected[VALID].min() < expected[VALID].max() < 0.45
  np.testing.assert_allclose(stats["uncovered"][VALID], expected[VALID], rtol=1e-5)


def test_agreement_of_equal_models(batch, context):
  method = make_x_token(projection=IDENTITY)
  spans = np.arange(8, dtype=np.int32) // 2 + 1
  teacher, labels = np.asarray(batch.teacher)[0], np.asarray(batch.labels)[0]
  _, stats = jax.jit(dense_span_loss(method.loss))(teacher, teacher, labels, spans, spans, context)
  np.testing.assert_array_equal(stats["agreement"], [1, 1, 1, 1, 0, 0, 0, 0])
  np.testing.assert_allclose(stats["forward_kl"], 0, atol=1e-6)


@pytest.mark.short_form(1)
@pytest.mark.parametrize("kind", ["p_kl", "h_kl", "uld"])
def test_mechanisms_apply_to_spans(row, context, kind):
  """Weight, temperature and compensation are those of the span's teacher entropy."""
  method = make(kind=kind, **EGAD)

  @jax.jit
  def compute(*row):
    def third(student):
      loss, stats = dense_span_loss(method.loss)(student, *row[1:], context)
      return loss[3], stats

    gradient, stats = jax.grad(third, has_aux=True)(row[0])
    position = context.state.entropy.position(stats["teacher_entropy"][np.flatnonzero(VALID)])
    temperature = EGAD["temperature"].of_position(position)
    return stats, gradient, temperature, curriculum_weights(position, context.progress)

  stats, ours, temperature, weight = jax.tree.map(np.asarray, compute(*row))
  assert np.ptp(temperature) > 0.1
  np.testing.assert_allclose(stats["temperature"][VALID], temperature, rtol=1e-6)
  np.testing.assert_allclose(stats["weight"][VALID], weight, rtol=1e-6)
  values = span_by_span(row, kind, [float(t) for t in temperature])
  expected = weight * temperature**2 * values
  np.testing.assert_allclose(stats["distillation_loss"][VALID], expected, rtol=2e-5)

  options = {"projection": PROJECTION, "kind": kind, "temperature": float(temperature[2])}

  def with_constants(student):
    spans = [np.where(c == 4, 1, 0) for c in row[3:]]
    value, _ = cross_tokenizer_loss(student, row[1], *spans, **options)
    log_q = jax.nn.log_softmax(student)
    nll = -(log_q[3, row[2][3]] + log_q[4, row[2][4]] + log_q[5, row[2][5]])
    return weight[2] * temperature[2] ** 2 * value + 0.1 * nll

  expected = jax.jit(jax.grad(with_constants))(row[0])
  np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6)


def test_one_vocabulary_token_by_token_is_vanilla_kd(batch, context):
  spans = np.arange(1, 9, dtype=np.int32)
  row = (batch.student[0], batch.teacher[0], batch.labels[0])

  @jax.jit
  def compute(*row):
    found = []
    for t in (1.0, 2.5):
      fixed = Temperature(kind="fixed", base=t)
      method = make_x_token(projection=IDENTITY, temperature=fixed, ce_weight=0.2)
      vanilla = make_vanilla_kd(temperature=t, ce_weight=0.2)
      ours = dense_span_loss(method.loss)(*row, spans, spans, context)
      found.append((ours, vanilla.loss.function(*row, {}, context)))
    return found, losses.forward_kl(*row[:2])

  found, kl = compute(*row)
  for (loss, stats), (expected, expected_stats) in found:
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, stat in expected_stats.items():
      np.testing.assert_allclose(stats[name], stat, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["forward_kl"], kl, rtol=1e-5)


def test_no_gradient_but_the_students_through_the_loss(row, context):
  method = make(**EGAD)

  @jax.jit
  def gradients(student, teacher):
    function = lambda z_s, z_t: dense_span_loss(method.loss)(z_s, z_t, *row[2:], context)
    of_stats = jax.grad(lambda *z: sum(s.sum() for s in function(*z)[1].values()), (0, 1))
    of_loss = jax.grad(lambda *z: function(*z)[0].sum(), (0, 1))
    return of_stats(student, teacher), of_loss(student, teacher)

  (stats_student, stats_teacher), (student, teacher) = gradients(*row[:2])
  for zero in (stats_student, stats_teacher, teacher):
    np.testing.assert_array_equal(zero, 0)
  assert (np.abs(student[:6]).sum(1) > 0).all()


@pytest.mark.parametrize("options", [{}, {**EGAD, "kind": "h_kl", "span_average": "logprob"}])
def test_what_is_in_no_valid_span_changes_nothing(row, context, options):
  method = make(**options)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def step(student, *rest):
    loss, stats = dense_span_loss(method.loss)(student, *rest, context)
    return loss.sum(), stats

  student, teacher, labels, *spans = row
  expected = step(*row)
  outside = np.array([False] * 6 + [True] * 2), np.arange(6) == 3
  poisoned = [
    np.where(out[:, None], np.float32(np.nan), z)
    for out, z in zip(outside, (student, teacher), strict=True)
  ]
  labels = np.where(outside[0], -100, labels).astype(np.int32)
  jax.tree.map(np.testing.assert_array_equal, step(*poisoned, labels, *spans), expected)
  (value, stats), gradient = step(*poisoned, labels, np.zeros(8, np.int32), spans[1])
  assert value == 0
  for zero in (*stats.values(), gradient):
    np.testing.assert_array_equal(zero, 0)


def test_spans_are_independent_and_rows_can_be_mapped(row, context):
  function = dense_span_loss(make(teacher_top_k=None, **EGAD).loss)
  loss_of = jax.jit(function)
  loss, _ = loss_of(*row, context)
  scale_s, scale_t = (np.where(np.arange(n) < first, 1, 3) for n, first in ((8, 3), (6, 4)))
  other = (
    row[0] * scale_s[:, None].astype(np.float32),
    row[1] * scale_t[:, None].astype(np.float32),
    *row[2:],
  )
  changed, _ = loss_of(*other, context)
  loss, changed = np.asarray(loss), np.asarray(changed)
  np.testing.assert_array_equal(changed[:2], loss[:2])
  assert abs(changed[3] - loss[3]) > 1e-3
  both = tuple(np.stack([a, b]) for a, b in zip(row, other, strict=True))

  @jax.jit
  def of_rows(both):
    mapped, _ = jax.vmap(function, (0,) * 5 + (None,))(*both, context)
    return mapped, jax.lax.map(lambda r: function(*r, context), both)[0]

  mapped, one_by_one = of_rows(both)
  np.testing.assert_allclose(mapped, [loss, changed], rtol=1e-6)
  np.testing.assert_allclose(one_by_one, mapped, rtol=1e-6)


@pytest.mark.slow
def test_equals_itself_not_compiled(row, context):
  function = dense_span_loss(make(teacher_top_k=None, **EGAD).loss)
  eager, stats = function(*row, context)
  np.testing.assert_allclose(eager, jax.jit(function)(*row, context)[0], rtol=1e-6)
  expected = stats["distillation_loss"] + 0.1 * stats["cross_entropy"]
  np.testing.assert_array_equal(eager, expected)


def test_state_follows_the_spans_that_count(row, context):
  method = make(half_life=100.0)
  update = jax.jit(method.update)
  nan = np.nan
  stats = {"teacher_entropy": np.array([0.5, 1.0, nan, 2.0, nan, nan], np.float32)}
  state = method.init_state()
  new = update(state, stats, VALID, np.float32(0.5))
  entropy, all_count = np.array([0.5, 1.0, 2.0], np.float32), np.ones(3, bool)
  expected = jax.jit(lambda d: d.update(entropy, all_count, half_life=100.0))(state.entropy)
  np.testing.assert_array_equal(new.entropy.mass, expected.mass)
  nothing = update(new, stats, np.zeros(6, bool), np.float32(0.5))
  jax.tree.map(np.testing.assert_array_equal, nothing, new)


def test_misuse(row, context):
  for options, message in (
    ({"kind": "kl"}, "kind must be one of p_kl, h_kl, uld"),
    ({"ce_weight": -1.0}, "ce_weight must be >= 0, got -1.0"),
    ({"half_life": 0.0}, "half_life must be a positive number"),
    ({"teacher_top_k": 0}, "teacher_top_k must be at least 1 or None"),
  ):
    with pytest.raises(ValueError, match=message):
      make(**options)
  wrong = {"projection": (PROJECTION[0][:3], PROJECTION[1][:3])}
  with pytest.raises(ValueError, match=r"projection must be ids and weights of shape \[13, k\]"):
    dense_span_loss(make(**wrong).loss)(*row, context)


def test_progress_is_read_for_a_curriculum_alone():
  assert make(curriculum=Curriculum()).reads_progress
  assert not make().reads_progress
