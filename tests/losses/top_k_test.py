from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from egad_jax import losses
from egad_jax.losses import DIVERGENCES, log_divergences, token_entropy
from egad_jax.losses.divergences import hellinger
from egad_jax.losses.top_k import (
  TopK,
  coarse_pair,
  entropy_bracket,
  entropy_estimate,
  mask_top_k,
  top_k_teacher,
)

Z_S, Z_T = np.array([1.0, 1.0, 1.0, 0.0]), np.array([2.0, 1.0, 0.0, -1.0])
ALL = {**DIVERGENCES, "hellinger": hellinger}
# The reduction is the same for all; where it is in question a few stand for them.
FEW = ("forward_kl", "reverse_kl", "hellinger")
# f-divergences (and a root of one): merging categories cannot raise them.
MONOTONE = [n for n in ALL if n not in ("adaptive_kl", "alpha_beta")]


def pair(shape=(3, 4, 9), scale=2.0, dtype=np.float32):
  generator = np.random.default_rng(0)
  return tuple((scale * generator.normal(size=shape)).astype(dtype) for _ in range(2))


@jax.jit
def few_graded(student, teacher, temperature, where=None):
  """Returns {name: (sum of values, gradient)}, as one program."""

  def graded(name):
    function = lambda z: ALL[name](z, teacher, temperature=temperature, where=where).sum()
    return jax.value_and_grad(function)(student)

  return {name: graded(name) for name in FEW}


reduced = jax.jit(top_k_teacher, static_argnums=1)


def renormalized(top_k):
  return top_k._replace(log_tail=None)


def test_golden_values():
  @jax.jit
  def compute(student, teacher):
    top_k = top_k_teacher(teacher, 2)
    graded = jax.value_and_grad(losses.forward_kl)(student, top_k)
    blind = renormalized(top_k)
    return top_k, graded, [losses.forward_kl(student, blind, temperature=t) for t in (1.0, 2.0)]

  with jax.enable_x64(True):
    top_k, (value, gradient), without_tail = compute(Z_S, Z_T)
    np.testing.assert_array_equal(top_k.ids, [0, 1])
    np.testing.assert_allclose(np.exp(top_k.log_probs), [0.643914, 0.236883], atol=6e-7)
    np.testing.assert_allclose(np.exp(top_k.log_tail), 0.119203, atol=6e-7)
    np.testing.assert_allclose(top_k.entropy, 0.947537, atol=6e-7)
    # The tails are proportional, so nothing is lost.
    np.testing.assert_allclose(value, 0.298805, atol=6e-7)
    np.testing.assert_allclose(gradient, [-0.346992, 0.060040, 0.209778, 0.077173], atol=6e-7)
    np.testing.assert_allclose(without_tail, [0.110944, 0.030300], atol=6e-7)


def test_temperature_acts_on_the_categories():
  def compute(student, teacher):
    p, q = jax.nn.softmax(teacher), jax.nn.softmax(student)
    coarse = [jnp.log(jnp.array([d[0], d[1], d[2] + d[3]])) for d in (q, p)]
    return (
      losses.forward_kl(student, top_k_teacher(teacher, 2), temperature=2.0),
      losses.forward_kl(*coarse, temperature=2.0),
      # The vocabulary tempered before the reduction.
      losses.forward_kl(student / 2, top_k_teacher(teacher / 2, 2)),
    )

  with jax.enable_x64(True):
    value, expected, before = jax.jit(compute)(Z_S, Z_T)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert abs(float(expected) - 0.088464) > 1e-3
    # The full forward KL, tails still proportional.
    np.testing.assert_allclose(before, 0.088464, atol=6e-7)


def test_reduction_by_hand_and_gradient_through_the_tail():
  student, teacher = pair((7,), dtype=np.float64)
  p, q = (np.exp(z) / np.exp(z).sum() for z in (teacher, student))
  ids = np.argsort(-p)[:3]
  rest = np.setdiff1d(np.arange(7), ids)
  coarse = [np.log([*d[ids], d[rest].sum()]) for d in (q, p)]

  @jax.jit
  def compute(student, teacher, coarse):
    top_k = top_k_teacher(teacher, 3)
    values = {name: function(student, top_k) for name, function in ALL.items()}
    expected = {name: getattr(log_divergences, name)(*coarse) for name in ALL}
    slope = jax.grad(losses.forward_kl)
    return top_k.ids, values, expected, slope(student, top_k), slope(student, renormalized(top_k))

  with jax.enable_x64(True):
    found, values, by_hand, gradient, without_tail = compute(student, teacher, coarse)
  np.testing.assert_array_equal(found, ids)
  for name in ALL:
    np.testing.assert_allclose(values[name], by_hand[name], rtol=1e-10, err_msg=name)
  # q_i - p_i at the ids; outside, q_j scaled so that the tail as a whole gets Q - R.
  expected = q - p
  expected[rest] = q[rest] * (1 - p[rest].sum() / q[rest].sum())
  np.testing.assert_allclose(gradient, expected, atol=1e-12)
  without_tail = np.asarray(without_tail)
  np.testing.assert_array_equal(without_tail[rest], 0)
  inside = q[ids] / q[ids].sum() - p[ids] / p[ids].sum()
  np.testing.assert_allclose(without_tail[ids], inside, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_whole_vocabulary_loses_nothing(temperature):
  with jax.enable_x64(True):
    student, teacher = pair((3, 7), dtype=np.float64)
    full = few_graded(student, teacher, temperature)
    whole = reduced(teacher, 7)
    for top_k in (whole, renormalized(whole)):
      for name, (value, gradient) in few_graded(student, top_k, temperature).items():
        np.testing.assert_allclose(value, full[name][0], rtol=1e-10, err_msg=name)
        np.testing.assert_allclose(gradient, full[name][1], atol=1e-10, err_msg=name)


def test_fewer_categories_give_less():
  def compute(student, teacher):
    tops = [top_k_teacher(teacher, k) for k in (1, 3, 8)]
    return {name: [ALL[name](student, top_k) for top_k in tops] for name in MONOTONE}

  with jax.enable_x64(True):
    values = jax.jit(compute)(*pair((200, 8), 3.0, np.float64))
  for name, by_k in values.items():
    by_k = np.asarray(by_k)
    assert np.all(by_k[0] >= -1e-15), name
    assert np.all(np.diff(by_k, axis=0) >= -1e-12), name


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_identical_models_are_at_zero(temperature):
  _, teacher = pair((4, 4))
  known = reduced(teacher, 2)
  for top_k in (known, renormalized(known)):
    for name, (value, gradient) in few_graded(teacher, top_k, temperature).items():
      np.testing.assert_allclose(value, 0, atol=1e-5, err_msg=name)
      tolerance = 2e-6 / min(1.0, temperature)
      np.testing.assert_allclose(gradient, 0, atol=tolerance, err_msg=name)


def test_tiny_tails_keep_their_digits():
  @jax.jit
  def compute(student, teacher):
    return [jax.nn.log_softmax(z) for z in coarse_pair(student, top_k_teacher(teacher, 2))]

  teacher = np.array([60.0, 10.0, 1.0, -3.0])
  student = np.array([50.0, 3.0, -2.0, -7.0])
  with jax.enable_x64(True):
    exact = [np.asarray(z) for z in compute(student, teacher)]
  coarse = compute(np.float32(student), np.float32(teacher))
  np.testing.assert_allclose(exact[0][-1], math.log(math.exp(-2) + math.exp(-7)) - 50, rtol=1e-12)
  for value, expected in zip(coarse, exact, strict=True):
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-12)


def test_extreme_logits_and_ruled_out_entries_stay_finite():
  inf = np.inf
  student = np.array(
    [[1e4, -1e4, 0, 3], [0, -inf, 1, -inf], [-inf, 1, 0, 2], [1, 0, -inf, -inf]], np.float32
  )
  teacher = np.array(
    [[-1e4, 1e4, 0, -3], [1e4, 1, -inf, -inf], [3, -inf, 0, -inf], [2, 1, 0, 0]], np.float32
  )
  known = [reduced(teacher, k) for k in (2, 4)]
  for top_k in (*known, renormalized(known[0])):
    for temperature in (0.1, 1.0, 100.0):
      for name, (value, gradient) in few_graded(student, top_k, temperature).items():
        assert np.isfinite(value), name
        assert np.all(np.isfinite(gradient)), name
        np.testing.assert_array_equal(np.asarray(gradient)[student == -inf], 0, err_msg=name)
  bracket = jax.jit(lambda z: entropy_bracket(top_k_teacher(z, 3), 4))(teacher)
  assert np.all(np.isfinite(bracket))


def test_hidden_columns_do_not_matter():
  student, teacher = pair((4, 4))
  junk = np.array([[np.nan, 1e4, -3.0]] * 4, np.float32)
  where = np.arange(7) < 4
  padded = [np.concatenate([z, junk], axis=-1) for z in (student, teacher)]
  top_k = jax.jit(lambda z, where: top_k_teacher(z, 2, where=where))(padded[1], where)
  plain = few_graded(student, reduced(teacher, 2), 1.0)
  # An id that is hidden on both sides counts for nothing, whatever the teacher gave it.
  with_junk = TopK(
    np.concatenate([top_k.ids, np.full((4, 1), 6, np.int32)], axis=-1),
    np.concatenate([top_k.log_probs, np.zeros((4, 1), np.float32)], axis=-1),
    top_k.log_tail,
  )
  hidden = few_graded(padded[0], top_k, 1.0, where)
  for name, (value, gradient) in hidden.items():
    gradient = np.asarray(gradient)
    np.testing.assert_allclose(value, plain[name][0], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(gradient[:, :4], plain[name][1], atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(gradient[:, 4:], 0, err_msg=name)
  function = jax.jit(losses.forward_kl)
  value = function(padded[0], with_junk, where=where)
  np.testing.assert_allclose(value, function(padded[0], top_k, where=where), atol=1e-6)


def test_vocabulary_of_one():
  zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
  for name, (value, gradient) in few_graded(zero, reduced(one, 1), 1.0).items():
    np.testing.assert_allclose(value, 0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(gradient, 0, atol=1e-6, err_msg=name)
  low, high = jax.jit(lambda z: entropy_bracket(top_k_teacher(z, 1), 1))(one)
  assert (low, high) == (0, 0)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_value_and_gradient_are_consistent(name):
  with jax.enable_x64(True):
    student, teacher = pair((2, 6), dtype=np.float64)
    top_k = reduced(teacher, 3)
    function = jax.jit(lambda z: ALL[name](z, top_k))
    check_grads(function, (student,), order=2, modes=("rev",))


def test_gradient_reaches_the_student_alone():
  student, teacher = pair((2, 5))
  top_k = reduced(teacher, 2)

  def total(z, log_probs, log_tail, temperature):
    known = TopK(top_k.ids, log_probs, log_tail, top_k.entropy)
    return {name: ALL[name](z, known, temperature=temperature).sum() for name in FEW}

  @jax.jit
  def gradients(teacher, *arguments):
    of_reduction = jax.grad(lambda z: top_k_teacher(z, 2)[1].sum())(teacher)
    return of_reduction, jax.jacrev(total, (0, 1, 2, 3))(*arguments)

  temperature = np.array([1.0, 2.0], np.float32)
  of_reduction, found = gradients(teacher, student, *top_k[1:3], temperature)
  np.testing.assert_array_equal(of_reduction, 0)
  for name, (to_student, *others) in found.items():
    assert np.abs(to_student).max(axis=0).min() > 1e-4, name  # Every entry.
    for gradient in others:
      np.testing.assert_array_equal(gradient, 0, err_msg=name)


def test_jit_vmap_and_leading_axes():
  student, teacher = pair((3, 4, 9))
  temperature = np.random.default_rng(5).uniform(0.5, 2.0, (3, 4)).astype(np.float32)

  def function(student, teacher, temperature):
    top_k = top_k_teacher(teacher, 3)
    value = losses.reverse_kl(student, top_k, temperature=temperature)
    return top_k, value, entropy_bracket(top_k, 9), coarse_pair(student, top_k)

  @jax.jit
  def others(*arguments):
    alone = function(*(x[1, 2] for x in arguments))
    return function(*arguments), jax.vmap(jax.vmap(function))(*arguments), alone

  eager = function(student, teacher, temperature)
  assert jax.tree.map(jnp.shape, eager[:2]) == (TopK((3, 4, 3), (3, 4, 3), (3, 4), (3, 4)), (3, 4))
  jitted, vmapped, alone = others(student, teacher, temperature)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, jitted, eager)
  jax.tree.map(close, vmapped, eager)
  jax.tree.map(close, alone, jax.tree.map(lambda a: np.asarray(a)[1, 2], eager))


def test_dtypes():
  student, teacher = (z.astype(jnp.bfloat16) for z in pair((4, 50)))
  top_k = reduced(teacher, 8)
  assert {a.dtype for a in top_k} == {jnp.dtype("i4"), jnp.dtype("f4")}
  rounded = few_graded(student, top_k, 1.0)
  with jax.enable_x64(True):
    exact_top_k = reduced(np.asarray(teacher, np.float64), 8)
    exact = few_graded(np.asarray(student, np.float64), exact_top_k, 1.0)
  for name, (value, gradient) in rounded.items():
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16), name
    assert exact[name][0].dtype == exact[name][1].dtype == jnp.float64, name
    np.testing.assert_allclose(value, exact[name][0], rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(
      np.asarray(gradient, np.float32), exact[name][1], rtol=2**-7, atol=2e-7, err_msg=name
    )
  # As a cache would store it: ids in 16 bits, rounded log-probabilities.
  stored = TopK(*(np.asarray(x).astype(d) for x, d in zip(top_k, ("u2", "f2", "f2"), strict=False)))
  value = np.sum(jax.jit(losses.forward_kl)(student, stored))
  np.testing.assert_allclose(value, exact["forward_kl"][0], rtol=1e-3)


def tails(vocab):
  """Distributions whose tail after the top 3 is flat, steep, nothing, tiny, one entry or random."""
  random = 3 * np.random.default_rng(3).normal(size=(300, vocab))
  flat = np.where(np.arange(vocab) < 3, 2.0, 0.0)
  steep = -8.0 * np.arange(vocab)
  nothing = np.where(np.arange(vocab) < 3, 1.0, -np.inf)
  tiny = np.where(np.arange(vocab) < 3, 1.0, -200.0)
  single = np.where(np.arange(vocab) < 4, 0.5, -np.inf)
  uniform = np.zeros(vocab)
  return np.concatenate([random, np.stack([flat, steep, nothing, tiny, single, uniform])])


def test_entropy_bracket_holds():
  # A tail mass below p_k could be a single entry: the bound is -R log R then, not -R log p_k.
  p = np.array([0.5, 0.4, 0.1])

  @jax.jit
  def compute(logits, log_p):
    brackets = {k: entropy_bracket(top_k_teacher(logits, k), 12) for k in (1, 3, 12)}
    return token_entropy(logits), brackets, entropy_bracket(top_k_teacher(log_p, 2), 3)

  with jax.enable_x64(True):
    entropy, brackets, (single, _) = jax.tree.map(np.asarray, compute(tails(12), np.log(p)))
  for k, (low, high) in brackets.items():
    assert np.all(low <= entropy + 1e-12), k
    assert np.all(entropy <= high + 1e-12), k
    assert np.all(low >= -1e-15), k
  for bound in brackets[12]:
    np.testing.assert_allclose(bound, entropy, atol=1e-12)
  # Both ends are reached: by the flat tail, and by a tail that is one entry as likely as p_k.
  low, high = brackets[3]
  np.testing.assert_allclose(high[300], entropy[300], rtol=1e-12)
  np.testing.assert_allclose(low[304], entropy[304], rtol=1e-12)
  np.testing.assert_allclose(single, -np.sum(p * np.log(p)), rtol=1e-12)


def test_entropy_bracket_stays_one_with_rounded_numbers():
  log_probs = np.log(np.array([0.5, 0.2, 0.1, 0.1], np.float32))
  stored = TopK(np.arange(4, dtype=np.int32), log_probs, np.log(np.float32(0.11)))
  # No entry, or one likelier than the fourth, has the 0.11 left.
  for low, high in jax.jit(lambda known: [entropy_bracket(known, v) for v in (4, 5)])(stored):
    assert low <= high


def test_entropy_bracket_without_tail_reads_the_mass_left():
  @jax.jit
  def brackets(teacher):
    top_k = top_k_teacher(teacher, 3)
    return entropy_bracket(top_k, 12), entropy_bracket(renormalized(top_k), 12)

  with jax.enable_x64(True):
    for with_tail, without in zip(*brackets(tails(12)[:300]), strict=True):
      np.testing.assert_allclose(without, with_tail, rtol=1e-9)


def test_entropy_estimate():
  _, teacher = pair((5, 9))
  top_k = reduced(teacher, 3)
  np.testing.assert_array_equal(entropy_estimate(top_k, 9), top_k.entropy)
  low, high = entropy_bracket(top_k, 9)
  np.testing.assert_array_equal(entropy_estimate(top_k._replace(entropy=None), 9), (low + high) / 2)
  of_entropy = lambda e: entropy_estimate(top_k._replace(entropy=e), 9).sum()
  np.testing.assert_array_equal(jax.jit(jax.grad(of_entropy))(top_k.entropy), 0)


def test_masked_tokens_become_harmless():
  student, teacher = pair((2, 2, 4))
  mask = np.array([[True, False], [False, True]])
  top_k = reduced(np.where(mask[..., None], teacher, np.float32(np.nan)), 2)
  top_k = top_k._replace(ids=np.where(mask[..., None], top_k.ids, -99).astype(np.int32))
  safe = jax.tree.map(np.asarray, jax.jit(mask_top_k)(top_k, mask))
  same = lambda a, b: np.testing.assert_array_equal(a[mask], np.asarray(b)[mask])
  jax.tree.map(same, safe, top_k)
  student = np.where(mask[..., None], student, np.float32(0))
  flat = jax.tree.map(lambda x: x.reshape(4, *x.shape[2:]), (student, safe))
  for name, (value, gradient) in few_graded(*flat, 1.0).items():
    assert np.isfinite(value), name
    assert np.all(np.isfinite(gradient)), name

  @jax.jit
  def known_in_part(student, safe):
    forms = (safe, renormalized(safe), safe._replace(entropy=None))
    return [(losses.forward_kl(student, known), entropy_estimate(known, 4)) for known in forms]

  assert np.all(np.isfinite(known_in_part(student, safe)))
  np.testing.assert_allclose(np.exp(safe.log_probs).sum(-1)[~mask], 1, atol=1e-6)


STUDENT = np.zeros((2, 5), np.float32)
TEACHER = TopK(np.zeros((2, 3), np.int32), *(np.zeros(s, np.float32) for s in ((2, 3), 2, 2)))


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (lambda: top_k_teacher(STUDENT, 0), ValueError, r"k must be in \[1, 5\], .*got 0"),
    (lambda: top_k_teacher(STUDENT.astype(int), 1), TypeError, "teacher_logits must be floating"),
    (
      lambda: losses.forward_kl(STUDENT, TEACHER._replace(ids=jnp.zeros((2, 3)))),
      TypeError,
      "ids of a TopK must be integers, got float32",
    ),
    (
      lambda: losses.forward_kl(STUDENT[0], TEACHER),
      ValueError,
      r"ids of a TopK must have shape \('k',\), .*got \(2, 3\)",
    ),
    (lambda: losses.forward_kl(STUDENT[:, :2], TEACHER), ValueError, "k of their 2 entries, got"),
    (lambda: entropy_bracket(TEACHER, 2), ValueError, "k of their 2 entries, got"),
    (
      lambda: coarse_pair(STUDENT, TEACHER._replace(log_probs=jnp.zeros((2, 2)))),
      ValueError,
      r"log_probs of a TopK must have shape \(2, 3\), got \(2, 2\)",
    ),
    (
      lambda: coarse_pair(STUDENT, TEACHER._replace(log_tail=jnp.zeros((2, 1)))),
      ValueError,
      r"log_tail of a TopK must have shape \(2,\), got \(2, 1\)",
    ),
    (
      lambda: coarse_pair(STUDENT, TEACHER._replace(entropy=jnp.zeros(3))),
      ValueError,
      r"entropy of a TopK must have shape \(2,\)",
    ),
    (
      lambda: coarse_pair(STUDENT, TEACHER._replace(log_tail=jnp.zeros(2, int))),
      TypeError,
      "log_tail of a TopK must be floating point",
    ),
    (lambda: mask_top_k(TEACHER, jnp.ones(3, bool)), ValueError, "one entry per token"),
    (
      lambda: losses.target_class_kl(STUDENT, TEACHER, jnp.zeros(2, int)),
      TypeError,
      "target_class_kl needs teacher_logits over the whole vocabulary, got a TopK",
    ),
    (
      lambda: losses.non_target_class_kl(STUDENT, TEACHER, jnp.zeros(2, int)),
      TypeError,
      "non_target_class_kl needs",
    ),
    (
      lambda: jax.eval_shape(lambda: losses.forward_kl(STUDENT, TEACHER, temperature=-1)),
      ValueError,
      "must be positive",
    ),
  ],
)
def test_misuse(call, error, message):
  with pytest.raises(error, match=message):
    call()
