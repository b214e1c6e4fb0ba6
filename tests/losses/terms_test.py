from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses, methods
from egad_jax.losses import log_divergences, token_entropy
from egad_jax.losses.probabilities import log_probabilities
from egad_jax.losses.terms import at_temperature, check_ce_weight, log_pair, token_terms
from egad_jax.losses.top_k import entropy_bracket, top_k_teacher


def pair(shape=(2, 3, 7)):
  generator = np.random.default_rng(0)
  return tuple((2 * generator.normal(size=shape)).astype(np.float32) for _ in range(2))


def some_temperatures():
  return np.random.default_rng(2).uniform(0.5, 2.0, (2, 3)).astype(np.float32)


reduced = jax.jit(top_k_teacher, static_argnums=1)


def test_dense_pair_is_plain_log_probabilities():
  student, teacher = pair()
  found = log_pair(student, teacher)
  np.testing.assert_array_equal(found.log_q, log_probabilities(student))
  np.testing.assert_array_equal(found.log_p, log_probabilities(teacher))
  np.testing.assert_array_equal(found.teacher_entropy, token_entropy(teacher))
  assert found.vocab_log_q is found.log_q
  for value in jax.tree.leaves(jax.jit(log_pair)(*(z.astype(jnp.bfloat16) for z in pair()))):
    assert value.dtype == jnp.float32


def test_temperature_of_one_costs_nothing():
  found = log_pair(*pair())
  log_q, log_p = at_temperature(found, 1.0)
  assert log_q is found.log_q
  assert log_p is found.log_p
  per_token = some_temperatures()
  for temperature in (2.0, per_token):
    expected = [log_probabilities(z, temperature=temperature) for z in pair()]
    for ours, theirs in zip(at_temperature(found, temperature), expected, strict=True):
      np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("tail", ["ghost", "renormalized"])
def test_top_k_pair(tail):
  @jax.jit
  def compute(student, teacher, per_token):
    top_k = top_k_teacher(teacher, 3)
    if tail == "renormalized":
      top_k = top_k._replace(log_tail=None)
    found = log_pair(student, top_k)
    values = [
      (
        log_divergences.forward_kl(*at_temperature(found, temperature)),
        losses.forward_kl(student, top_k, temperature=temperature),
      )
      for temperature in (1.0, 2.0, per_token)
    ]
    unknown = log_pair(student, top_k._replace(entropy=None)).teacher_entropy
    plain = token_entropy(teacher), log_probabilities(student)
    return found, plain, values, unknown, entropy_bracket(top_k, 7)

  found, (entropy, log_q), values, unknown, (low, high) = jax.tree.map(
    np.asarray, compute(*pair(), some_temperatures())
  )
  assert found.log_q.shape == found.log_p.shape == (2, 3, 4 if tail == "ghost" else 3)
  np.testing.assert_allclose(np.exp(found.log_q).sum(-1), 1, atol=1e-6)
  np.testing.assert_array_equal(found.teacher_entropy, entropy)
  np.testing.assert_array_equal(found.vocab_log_q, log_q)
  for value, expected in values:
    np.testing.assert_allclose(value, expected, atol=1e-6)
  np.testing.assert_allclose(unknown, (low + high) / 2, atol=1e-6)


def test_terms_of_a_top_k_teacher_are_about_the_whole_student():
  labels = np.random.default_rng(3).integers(0, 7, (2, 3), np.int32)
  value = np.ones((2, 3), np.float32)

  @jax.jit
  def compute(student, teacher):
    teachers = (teacher, top_k_teacher(teacher, 2))
    return [token_terms(log_pair(student, t), labels, value, ce_weight=0.5) for t in teachers]

  dense, top_k = compute(*pair())
  jax.tree.map(np.testing.assert_array_equal, top_k, dense)


def test_a_method_takes_a_top_k_teacher(batch, context):
  method = methods.make_egad(ce_weight=0.3)
  student, teacher, labels = (np.asarray(x)[0] for x in batch[:3])
  extras: dict[str, jax.Array] = {}

  def total(student, teacher):
    loss, stats = method.loss.function(student, teacher, labels, extras, context)
    return loss.sum(), stats

  graded = jax.jit(jax.value_and_grad(total, has_aux=True))
  (loss, stats), gradient = graded(student, reduced(teacher, 4))
  (dense_loss, dense_stats), dense_gradient = graded(student, teacher)
  for name in ("teacher_entropy", "student_entropy", "cross_entropy", "temperature", "weight"):
    np.testing.assert_allclose(stats[name], dense_stats[name], rtol=1e-5, atol=1e-6, err_msg=name)
  assert np.all(np.isfinite(gradient))
  assert loss < dense_loss
  whole = graded(student, reduced(teacher, 11))
  np.testing.assert_allclose(whole[0][0], dense_loss, rtol=1e-5)
  np.testing.assert_allclose(whole[1], dense_gradient, atol=1e-5)


def test_token_terms():
  student, teacher = pair()
  found = log_pair(student, teacher)
  labels = jnp.zeros((2, 3), jnp.int32)
  value = losses.forward_kl(student, teacher)
  loss, stats = token_terms(
    found, labels, value, ce_weight=0.5, temperature=2.0, weight=3.0, hard=True, extra=value
  )
  cross_entropy = -jax.nn.log_softmax(student)[..., 0]
  np.testing.assert_allclose(loss, value + 0.5 * cross_entropy, rtol=1e-6)
  expected = {
    "teacher_entropy": token_entropy(teacher),
    "student_entropy": token_entropy(student),
    "cross_entropy": cross_entropy,
    "distillation_loss": value,
    "extra": value,
    "temperature": jnp.full((2, 3), 2.0),
    "weight": jnp.full((2, 3), 3.0),
    "hard": jnp.ones((2, 3)),
  }
  assert stats.keys() == expected.keys()
  for name, stat in expected.items():
    np.testing.assert_allclose(stats[name], stat, rtol=1e-5, atol=1e-6, err_msg=name)
  plain, _ = token_terms(found, labels, value)
  assert plain is value


def test_stats_carry_no_gradient():
  student, teacher = pair()

  def stat_sum(student):
    _, stats = token_terms(
      log_pair(student, teacher),
      jnp.zeros((2, 3), jnp.int32),
      losses.forward_kl(student, teacher),
      extra=student[..., 0],
    )
    return sum(stat.sum() for stat in stats.values())

  np.testing.assert_array_equal(jax.jit(jax.grad(stat_sum))(student), 0)


def test_teacher_of_a_pair_is_detached():
  student, teacher = pair()

  def total(teacher):
    return sum(leaf.sum() for leaf in jax.tree.leaves(log_pair(student, teacher)))

  np.testing.assert_array_equal(jax.jit(jax.grad(total))(teacher), 0)
  top_k = reduced(teacher, 2)
  to_log_probs = jax.grad(lambda log_probs: total(top_k._replace(log_probs=log_probs)))
  np.testing.assert_array_equal(jax.jit(to_log_probs)(top_k.log_probs), 0)


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_misuse_of_ce_weight(weight):
  with pytest.raises(ValueError, match="ce_weight must be >= 0, got"):
    check_ce_weight(weight)


def test_misuse():
  student, teacher = pair()
  with pytest.raises(ValueError, match=r"same shape .* cross_tokenizer_loss"):
    log_pair(student, teacher[..., :5])
  with pytest.raises(ValueError, match="ids of a TopK must have shape"):
    log_pair(student[0], top_k_teacher(teacher, 2))
  with pytest.raises(ValueError, match="leading shape"):
    token_terms(log_pair(student, teacher), jnp.zeros(3, int), jnp.zeros((2, 3)))
