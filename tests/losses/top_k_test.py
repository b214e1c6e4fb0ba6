from __future__ import annotations

import itertools
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


def pair(shape=(3, 4, 9), scale=2.0, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0))
  return tuple(scale * jax.random.normal(key, shape, dtype) for key in keys)


@jax.jit
def few_graded(student, teacher, temperature=1.0, where=None):
  """Returns {name: (sum of values, gradient)}, as one program."""

  def graded(name):
    function = lambda z: ALL[name](z, teacher, temperature=temperature, where=where).sum()
    return jax.value_and_grad(function)(student)

  return {name: graded(name) for name in FEW}


@jax.jit
def monotone_values(student, teacher):
  return {name: ALL[name](student, teacher) for name in MONOTONE}


def renormalized(top_k):
  return top_k._replace(log_tail=None)


def test_golden_values():
  with jax.enable_x64(True):
    top_k = top_k_teacher(Z_T, 2)
    np.testing.assert_array_equal(top_k.ids, [0, 1])
    np.testing.assert_allclose(np.exp(top_k.log_probs), [0.643914, 0.236883], atol=6e-7)
    np.testing.assert_allclose(np.exp(top_k.log_tail), 0.119203, atol=6e-7)
    np.testing.assert_allclose(top_k.entropy, 0.947537, atol=6e-7)
    # The tails are proportional, so nothing is lost.
    np.testing.assert_allclose(losses.forward_kl(Z_S, top_k), 0.298805, atol=6e-7)
    gradient = jax.grad(losses.forward_kl)(Z_S, top_k)
    np.testing.assert_allclose(gradient, [-0.346992, 0.060040, 0.209778, 0.077173], atol=6e-7)
    for temperature, expected in ((1.0, 0.110944), (2.0, 0.030300)):
      value = losses.forward_kl(Z_S, renormalized(top_k), temperature=temperature)
      np.testing.assert_allclose(value, expected, atol=6e-7)


def test_temperature_acts_on_the_categories():
  with jax.enable_x64(True):
    top_k = top_k_teacher(Z_T, 2)
    p, q = jax.nn.softmax(Z_T), jax.nn.softmax(Z_S)
    coarse = [jnp.log(jnp.array([d[0], d[1], d[2] + d[3]])) for d in (q, p)]
    expected = losses.forward_kl(*coarse, temperature=2.0)
    np.testing.assert_allclose(losses.forward_kl(Z_S, top_k, temperature=2.0), expected, rtol=1e-12)
    assert abs(float(expected) - 0.088464) > 1e-3
    # The vocabulary tempered before the reduction: the full forward KL, tails still proportional.
    before = losses.forward_kl(Z_S / 2, top_k_teacher(Z_T / 2, 2))
    np.testing.assert_allclose(before, 0.088464, atol=6e-7)


def test_reduction_by_hand_and_gradient_through_the_tail():
  with jax.enable_x64(True):
    student, teacher = pair((7,), dtype=jnp.float64)
    p, q = (np.array(jax.nn.softmax(z)) for z in (teacher, student))
    top_k = top_k_teacher(teacher, 3)
    ids = np.argsort(-p)[:3]
    np.testing.assert_array_equal(top_k.ids, ids)
    rest = np.setdiff1d(np.arange(7), ids)
    log_q, log_p = (np.log([*d[ids], d[rest].sum()]) for d in (q, p))
    for name, function in ALL.items():
      expected = getattr(log_divergences, name)(jnp.array(log_q), jnp.array(log_p))
      np.testing.assert_allclose(function(student, top_k), expected, rtol=1e-10, err_msg=name)
    # q_i - p_i at the ids; outside, q_j scaled so that the tail as a whole gets Q - R.
    expected = np.array(q - p)
    expected[rest] = q[rest] * (1 - p[rest].sum() / q[rest].sum())
    np.testing.assert_allclose(jax.grad(losses.forward_kl)(student, top_k), expected, atol=1e-12)
    gradient = jax.grad(losses.forward_kl)(student, renormalized(top_k))
    np.testing.assert_array_equal(gradient[rest], 0)
    inside = q[ids] / q[ids].sum() - p[ids] / p[ids].sum()
    np.testing.assert_allclose(gradient[ids], inside, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_whole_vocabulary_loses_nothing(temperature):
  with jax.enable_x64(True):
    student, teacher = pair((3, 7), dtype=jnp.float64)
    full = few_graded(student, teacher, temperature)
    for top_k in (top_k_teacher(teacher, 7), renormalized(top_k_teacher(teacher, 7))):
      for name, (value, gradient) in few_graded(student, top_k, temperature).items():
        np.testing.assert_allclose(value, full[name][0], rtol=1e-10, err_msg=name)
        np.testing.assert_allclose(gradient, full[name][1], atol=1e-10, err_msg=name)


def test_fewer_categories_give_less():
  with jax.enable_x64(True):
    student, teacher = pair((200, 8), 3.0, jnp.float64)
    by_k = [monotone_values(student, top_k_teacher(teacher, k)) for k in (1, 3, 8)]
    for name in MONOTONE:
      assert bool(jnp.all(by_k[0][name] >= -1e-15)), name
      for fewer, more in itertools.pairwise(by_k):
        assert bool(jnp.all(fewer[name] <= more[name] + 1e-12)), name


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_identical_models_are_at_zero(temperature):
  _, teacher = pair((3, 9))
  for top_k in (top_k_teacher(teacher, 3), renormalized(top_k_teacher(teacher, 3))):
    for name, (value, gradient) in few_graded(teacher, top_k, temperature).items():
      np.testing.assert_allclose(value, 0, atol=1e-5, err_msg=name)
      tolerance = 2e-6 / min(1.0, temperature)
      np.testing.assert_allclose(gradient, 0, atol=tolerance, err_msg=name)


def test_tiny_tails_keep_their_digits():
  with jax.enable_x64(True):
    teacher = np.array([60.0, 10.0, 1.0, -3.0])
    student = np.array([50.0, 3.0, -2.0, -7.0])
    exact = coarse_pair(student, top_k_teacher(teacher, 2))
    exact = [jax.nn.log_softmax(z) for z in exact]
  top_k = top_k_teacher(jnp.float32(teacher), 2)
  coarse = [jax.nn.log_softmax(z) for z in coarse_pair(jnp.float32(student), top_k)]
  np.testing.assert_allclose(exact[0][-1], math.log(math.exp(-2) + math.exp(-7)) - 50, rtol=1e-12)
  for value, expected in zip(coarse, exact, strict=True):
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-12)


def test_extreme_logits_and_ruled_out_entries_stay_finite():
  inf = np.inf
  student = jnp.array([[1e4, -1e4, 0, 3], [0, -inf, 1, -inf], [-inf, 1, 0, 2], [1, 0, -inf, -inf]])
  teacher = jnp.array([[-1e4, 1e4, 0, -3], [1e4, 1, -inf, -inf], [3, -inf, 0, -inf], [2, 1, 0, 0]])
  known = [top_k_teacher(teacher, k) for k in (2, 4)]
  for top_k in (*known, renormalized(known[0])):
    for temperature in (0.1, 1.0, 100.0):
      for name, (value, gradient) in few_graded(student, top_k, temperature).items():
        assert np.isfinite(value), name
        assert np.all(np.isfinite(gradient)), name
        np.testing.assert_array_equal(gradient[student == -inf], 0, err_msg=name)
  low, high = entropy_bracket(top_k_teacher(teacher, 3), 4)
  assert bool(jnp.all(jnp.isfinite(low) & jnp.isfinite(high)))


def test_hidden_columns_do_not_matter():
  student, teacher = pair((2, 5))
  junk = jnp.array([[jnp.nan, 1e4, -3.0]] * 2)
  where = jnp.arange(8) < 5
  padded = [jnp.concatenate([z, junk], axis=-1) for z in (student, teacher)]
  top_k = top_k_teacher(padded[1], 3, where=where)
  plain = few_graded(student, top_k_teacher(teacher, 3))
  for name, (value, gradient) in few_graded(padded[0], top_k, where=where).items():
    np.testing.assert_allclose(value, plain[name][0], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(gradient[:, :5], plain[name][1], atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(gradient[:, 5:], 0, err_msg=name)
  # An id that is hidden on both sides counts for nothing, whatever the teacher gave it.
  with_junk = TopK(
    jnp.concatenate([top_k.ids, jnp.full((2, 1), 6)], axis=-1),
    jnp.concatenate([top_k.log_probs, jnp.zeros((2, 1))], axis=-1),
    top_k.log_tail,
  )
  value = losses.forward_kl(padded[0], with_junk, where=where)
  np.testing.assert_allclose(value, losses.forward_kl(padded[0], top_k, where=where), atol=1e-6)


def test_vocabulary_of_one():
  for name, (value, gradient) in few_graded(jnp.zeros(1), top_k_teacher(jnp.ones(1), 1)).items():
    np.testing.assert_allclose(value, 0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(gradient, 0, atol=1e-6, err_msg=name)
  low, high = entropy_bracket(top_k_teacher(jnp.ones(1), 1), 1)
  assert (low, high) == (0, 0)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_value_and_gradient_are_consistent(name):
  with jax.enable_x64(True):
    student, teacher = pair((2, 6), dtype=jnp.float64)
    top_k = top_k_teacher(teacher, 3)
    function = jax.jit(lambda z: ALL[name](z, top_k))
    check_grads(function, (student,), order=2, modes=("rev",))


def test_gradient_reaches_the_student_alone():
  student, teacher = pair((2, 5))
  top_k = top_k_teacher(teacher, 2)

  def total(z, log_probs, log_tail, temperature):
    known = TopK(top_k.ids, log_probs, log_tail, top_k.entropy)
    return {name: ALL[name](z, known, temperature=temperature).sum() for name in FEW}

  np.testing.assert_array_equal(jax.grad(lambda z: top_k_teacher(z, 2)[1].sum())(teacher), 0)
  found = jax.jit(jax.jacrev(total, (0, 1, 2, 3)))(student, *top_k[1:3], jnp.array([1.0, 2.0]))
  for name, (to_student, *others) in found.items():
    assert float(jnp.min(jnp.max(jnp.abs(to_student), axis=0))) > 1e-4, name  # Every entry.
    for gradient in others:
      np.testing.assert_array_equal(gradient, 0, err_msg=name)


def test_jit_vmap_and_leading_axes():
  student, teacher = pair((3, 4, 9))
  temperature = jax.random.uniform(jax.random.key(5), (3, 4), minval=0.5, maxval=2.0)

  def function(student, teacher, temperature):
    top_k = top_k_teacher(teacher, 3)
    value = losses.reverse_kl(student, top_k, temperature=temperature)
    return top_k, value, entropy_bracket(top_k, 9), coarse_pair(student, top_k)

  eager = function(student, teacher, temperature)
  assert jax.tree.map(jnp.shape, eager[:2]) == (TopK((3, 4, 3), (3, 4, 3), (3, 4), (3, 4)), (3, 4))
  jitted = jax.jit(function)(student, teacher, temperature)
  vmapped = jax.jit(jax.vmap(jax.vmap(function)))(student, teacher, temperature)
  alone = jax.jit(function)(student[1, 2], teacher[1, 2], temperature[1, 2])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, jitted, eager)
  jax.tree.map(close, vmapped, eager)
  jax.tree.map(close, alone, jax.tree.map(lambda a: a[1, 2], eager))


def test_dtypes():
  student, teacher = (z.astype(jnp.bfloat16) for z in pair((4, 50)))
  top_k = top_k_teacher(teacher, 8)
  assert {a.dtype for a in top_k} == {jnp.dtype("i4"), jnp.dtype("f4")}
  rounded = few_graded(student, top_k)
  with jax.enable_x64(True):
    exact_top_k = top_k_teacher(np.asarray(teacher, np.float64), 8)
    exact = few_graded(np.asarray(student, np.float64), exact_top_k)
  for name, (value, gradient) in rounded.items():
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16), name
    assert exact[name][0].dtype == exact[name][1].dtype == jnp.float64, name
    np.testing.assert_allclose(value, exact[name][0], rtol=2e-5, err_msg=name)
    np.testing.assert_allclose(
      gradient.astype(jnp.float32), exact[name][1], rtol=2**-7, atol=2e-7, err_msg=name
    )
  # As a cache would store it: ids in 16 bits, rounded log-probabilities.
  stored = TopK(
    top_k.ids.astype(jnp.uint16), top_k.log_probs.astype(jnp.float16), top_k.log_tail.astype("f2")
  )
  value = losses.forward_kl(student, stored).sum()
  np.testing.assert_allclose(value, exact["forward_kl"][0], rtol=1e-3)


def tails(vocab):
  """Distributions whose tail after the top 3 is flat, steep, nothing, tiny, one entry or random."""
  random = 3 * jax.random.normal(jax.random.key(3), (300, vocab), jnp.float64)
  flat = jnp.where(jnp.arange(vocab) < 3, 2.0, 0.0)
  steep = -8.0 * jnp.arange(vocab)
  nothing = jnp.where(jnp.arange(vocab) < 3, 1.0, -jnp.inf)
  tiny = jnp.where(jnp.arange(vocab) < 3, 1.0, -200.0)
  single = jnp.where(jnp.arange(vocab) < 4, 0.5, -jnp.inf)
  uniform = jnp.zeros(vocab)
  return jnp.concatenate([random, jnp.stack([flat, steep, nothing, tiny, single, uniform])])


def test_entropy_bracket_holds():
  bracket = jax.jit(lambda z, k: entropy_bracket(top_k_teacher(z, k), 12), static_argnums=1)
  with jax.enable_x64(True):
    logits = tails(12)
    entropy = token_entropy(logits)
    for k in (1, 3, 12):
      low, high = bracket(logits, k)
      assert bool(jnp.all(low <= entropy + 1e-12)), k
      assert bool(jnp.all(entropy <= high + 1e-12)), k
      assert bool(jnp.all(low >= -1e-15)), k
      if k == 12:
        np.testing.assert_allclose(low, entropy, atol=1e-12)
        np.testing.assert_allclose(high, entropy, atol=1e-12)
    # Both ends are reached: by the flat tail, and by a tail that is one entry as likely as p_k.
    low, high = bracket(logits, 3)
    np.testing.assert_allclose(high[300], entropy[300], rtol=1e-12)
    np.testing.assert_allclose(low[304], entropy[304], rtol=1e-12)
    # A tail mass below p_k could be a single entry: the bound is -R log R then, not -R log p_k.
    p = np.array([0.5, 0.4, 0.1])
    low, _ = entropy_bracket(top_k_teacher(np.log(p), 2), 3)
    np.testing.assert_allclose(low, -np.sum(p * np.log(p)), rtol=1e-12)


def test_entropy_bracket_stays_one_with_rounded_numbers():
  stored = TopK(jnp.arange(4), jnp.log(jnp.array([0.5, 0.2, 0.1, 0.1])), jnp.log(jnp.float32(0.11)))
  for vocab_size in (4, 5):  # No entry, or one likelier than the fourth, has the 0.11 left.
    low, high = entropy_bracket(stored, vocab_size)
    assert low <= high


def test_entropy_bracket_without_tail_reads_the_mass_left():
  with jax.enable_x64(True):
    top_k = top_k_teacher(tails(12)[:300], 3)
    for with_tail, without in zip(
      entropy_bracket(top_k, 12), entropy_bracket(renormalized(top_k), 12), strict=True
    ):
      np.testing.assert_allclose(without, with_tail, rtol=1e-9)


def test_entropy_estimate():
  _, teacher = pair((5, 9))
  top_k = top_k_teacher(teacher, 3)
  np.testing.assert_array_equal(entropy_estimate(top_k, 9), top_k.entropy)
  low, high = entropy_bracket(top_k, 9)
  np.testing.assert_array_equal(entropy_estimate(top_k._replace(entropy=None), 9), (low + high) / 2)
  gradient = jax.grad(lambda e: entropy_estimate(top_k._replace(entropy=e), 9).sum())(top_k.entropy)
  np.testing.assert_array_equal(gradient, 0)


def test_masked_tokens_become_harmless():
  student, teacher = pair((2, 3, 6))
  mask = jnp.array([[True, False, True], [False, True, True]])
  top_k = top_k_teacher(jnp.where(mask[..., None], teacher, jnp.nan), 2)
  top_k = top_k._replace(ids=jnp.where(mask[..., None], top_k.ids, -99))
  safe = jax.jit(mask_top_k)(top_k, mask)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[mask], b[mask]), safe, top_k)
  student = jnp.where(mask[..., None], student, 0)
  for name, (value, gradient) in few_graded(student, safe).items():
    assert np.isfinite(value), name
    assert np.all(np.isfinite(gradient)), name
  for known in (safe, renormalized(safe), safe._replace(entropy=None)):
    assert bool(jnp.all(jnp.isfinite(losses.forward_kl(student, known))))
    assert bool(jnp.all(jnp.isfinite(entropy_estimate(known, 6))))
  np.testing.assert_allclose(jnp.exp(safe.log_probs).sum(-1)[~mask], 1, atol=1e-6)


STUDENT = jnp.zeros((2, 5))
TEACHER = TopK(jnp.zeros((2, 3), int), jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros(2))


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
    (lambda: losses.forward_kl(STUDENT, TEACHER, temperature=-1), ValueError, "must be positive"),
  ],
)
def test_misuse(call, error, message):
  with pytest.raises(error, match=message):
    call()
