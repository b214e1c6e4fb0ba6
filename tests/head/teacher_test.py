"""A teacher that gives a `TopK`: the loss is that against the distribution with an even tail."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from egad_jax import losses, methods
from egad_jax.head import dense_head, distillation_head, head_on_mesh
from egad_jax.head.teacher import chunk_teacher
from egad_jax.losses import TopK, spread_tail, top_k_teacher
from egad_jax.teachers import Hidden
from tests.head.problems import filled_context, random_problem

VOCAB = 37
MECHANISMS = {
  "curriculum": losses.Curriculum(),
  "temperature": losses.Temperature(kind="adaptive"),
  "branch": losses.Branch(hard_fraction=0.8, softness=0.1, hard_logits=False),
}
LOSSES = {
  "egad": methods.make_egad(ce_weight=0.3, **MECHANISMS),
  "forward_kl": methods.make_vanilla_kd(temperature=1.5, ce_weight=0.3),
  "reverse_kl": methods.make_vanilla_kd(divergence="reverse_kl", ce_weight=0.3),
  "egad_reverse_kl": methods.make_egad(divergence="reverse_kl", **MECHANISMS),
}


def teacher_logits(problem):
  return problem.teacher_hidden @ problem.teacher_unembedding.T


@functools.partial(jax.jit, static_argnames="head")
def value_and_gradients(head, problem, outputs):
  def objective(hidden, unembedding):
    rest = (problem.labels, problem.mask, {}, filled_context())
    return head.of_outputs(hidden, unembedding, outputs, *rest)

  return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(*problem[:2])


def assert_same(actual, expected, tolerance):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-12)


@pytest.mark.short_form(2)
@pytest.mark.parametrize("name", LOSSES)
def test_all_entries_kept_equal_the_hidden_states(name):
  problem = random_problem()
  head = distillation_head(LOSSES[name].loss.function, chunk_size=7)
  hidden = Hidden(problem.teacher_hidden, problem.teacher_unembedding)
  expected = value_and_gradients(head, problem, hidden)
  everything = top_k_teacher(teacher_logits(problem), VOCAB)
  assert not np.any(np.isfinite(everything.log_tail))
  assert_same(value_and_gradients(head, problem, everything), expected, 3e-6)


@pytest.mark.short_form(1)
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_loss_against_the_even_tail(name):
  problem, k = random_problem(), 5
  top_k = top_k_teacher(teacher_logits(problem), k)._replace(entropy=None)
  token_loss = LOSSES[name].loss.function
  # By hand: the distribution, and its logits as hidden states of a model whose unembedding is 1.
  even = np.exp(np.asarray(top_k.log_tail, np.float64)) / (VOCAB - k)
  expected = np.broadcast_to(even[..., None], (*even.shape, VOCAB)).copy()
  np.put_along_axis(expected, np.asarray(top_k.ids), np.exp(top_k.log_probs), axis=-1)
  np.testing.assert_allclose(expected.sum(-1), 1, rtol=1e-5)
  dense = Hidden(jnp.asarray(np.log(expected), jnp.float32), jnp.eye(VOCAB))
  head = distillation_head(token_loss, chunk_size=7)
  found, wanted = (value_and_gradients(head, problem, x) for x in (top_k, dense))
  low, high = (found[0][1].pop(f"teacher_entropy_{side}") for side in ("low", "high"))
  assert_same(found, wanted, 3e-6)
  # The bracket holds the true entropy, and the entropy of the even tail is its upper end.
  true = top_k_teacher(teacher_logits(problem), k).entropy
  inside = np.asarray(problem.mask)
  assert np.all((low <= true + 1e-5)[inside])
  assert np.all((true <= high + 1e-5)[inside])
  assert np.all((low < high)[inside])
  np.testing.assert_allclose(high, found[0][1]["teacher_entropy"], rtol=1e-4, atol=1e-5)
  # Without chunks it is the same; the dense head has a path of its own.
  (value, stats), gradients = value_and_gradients(dense_head(token_loss), problem, top_k)
  assert stats.keys() == wanted[0][1].keys() | {"teacher_entropy_low", "teacher_entropy_high"}
  assert_same((value, gradients), (found[0][0], found[1]), 3e-6)


def test_guidance_reads_the_true_entropy():
  problem = random_problem()
  known = top_k_teacher(teacher_logits(problem), 3)
  hidden = Hidden(problem.teacher_hidden, problem.teacher_unembedding)
  for name in ("egad", "egad_reverse_kl"):
    head = distillation_head(LOSSES[name].loss.function, chunk_size=7)
    (_, wanted), _ = value_and_gradients(head, problem, hidden)
    (_, found), _ = value_and_gradients(head, problem, known)
    (_, flat), _ = value_and_gradients(head, problem, known._replace(entropy=None))
    for stat in ("teacher_entropy", "temperature", "weight", "hard"):
      assert_same(found[stat], wanted[stat], 1e-5)
      assert np.linalg.norm(flat[stat] - wanted[stat]) > 0.01 * np.linalg.norm(wanted[stat])
    assert "teacher_entropy_low" not in found


METHODS = {
  name: methods.make_method(name) for name in methods.METHODS if name not in methods.TWO_TOKENIZERS
} | {
  "forward_kl": LOSSES["forward_kl"],
}


@pytest.mark.short_form(3)
@pytest.mark.parametrize("name", METHODS)
def test_a_tail_without_mass_is_finite_in_value_and_gradient(name):
  method, problem = METHODS[name], random_problem()
  top_k = top_k_teacher(teacher_logits(problem), 4)
  kept = jax.nn.log_softmax(top_k.log_probs, axis=-1)
  # The least likely of the kept entries has probability 0 as well.
  kept = jax.nn.log_softmax(kept.at[..., -1].set(-jnp.inf), axis=-1)
  empty = TopK(top_k.ids, kept, jnp.full(problem.mask.shape, -jnp.inf))
  context = filled_context()
  context = context._replace(state=context.state._replace(method=method.init_state().method))
  head = distillation_head(method.loss.function, chunk_size=7)

  def objective(hidden, unembedding):
    rest = (empty, problem.labels, problem.mask, {}, context)
    return head.of_outputs(hidden, unembedding, *rest)

  results = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(*problem[:2])
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(results))
  assert all(np.any(gradient) for gradient in results[1])


def test_forward_kl_to_a_tail_without_mass_is_that_of_the_kept_entries():
  problem = random_problem()
  method = LOSSES["forward_kl"]
  top_k = top_k_teacher(teacher_logits(problem), 2)
  kept = jax.nn.log_softmax(top_k.log_probs, axis=-1)
  empty = TopK(top_k.ids, kept, jnp.full(problem.mask.shape, -jnp.inf))
  head = distillation_head(method.loss.function, chunk_size=7)
  (_, stats), _ = value_and_gradients(head, problem, empty)
  student = np.asarray(problem.student_hidden @ problem.student_unembedding.T, np.float64) / 1.5
  log_q = student - np.log(np.sum(np.exp(student), -1, keepdims=True))
  p = np.exp(np.asarray(kept, np.float64) / 1.5)
  p /= p.sum(-1, keepdims=True)
  expected = 1.5**2 * np.sum(p * (np.log(p) - np.take_along_axis(log_q, top_k.ids, -1)), -1)
  np.testing.assert_allclose(
    stats["distillation_loss"], np.where(problem.mask, expected, 0), rtol=1e-4, atol=1e-5
  )


@pytest.mark.short_form(1)
@pytest.mark.parametrize(("shape", "vocab"), [((2, 2, 2), 40), ((8, 1, 1), 37), ((1, 1, 8), 40)])
def test_sharded_equals_one_device(shape, vocab):
  names = ("data", "fsdp", "tensor")
  mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 3)
  problem = random_problem(batch=8, seq=8, vocab=vocab)
  top_k = top_k_teacher(teacher_logits(problem), 5)
  token_loss = LOSSES["egad"].loss.function
  head = head_on_mesh(
    token_loss, mesh, batch_axes=names[:2], tensor_axis="tensor", vocab_size=vocab, chunk_size=6
  )
  expected = value_and_gradients(distillation_head(token_loss), problem, top_k)
  assert_same(value_and_gradients(head, problem, top_k), expected, 1e-5)
  if shape == (1, 1, 8):
    unknown = top_k._replace(entropy=None)
    expected = value_and_gradients(distillation_head(token_loss), problem, unknown)
    assert_same(value_and_gradients(head, problem, unknown), expected, 1e-5)


@pytest.mark.slow
def test_a_split_vocabulary_stays_split():
  mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  vocab, chunk = 8192, 128
  problem = random_problem(batch=4, seq=chunk, vocab=vocab)
  outputs = top_k_teacher(jnp.zeros((4, chunk, 16)), 5)
  head = head_on_mesh(
    LOSSES["egad"].loss.function,
    mesh,
    batch_axes=("data",),
    tensor_axis="tensor",
    vocab_size=vocab,
    chunk_size=chunk,
  )
  program = value_and_gradients.lower(head, problem, outputs).compile().as_text()
  assert f"f32[{chunk},{vocab // 4}]" in program
  assert f"f32[{chunk},{vocab}]" not in program


@pytest.mark.parametrize("make_head", [distillation_head, dense_head])
def test_tokens_outside_the_mask_change_nothing(make_head):
  problem = random_problem()
  top_k = top_k_teacher(teacher_logits(problem), 5)
  outside = ~np.asarray(problem.mask)

  def poisoned(x):
    bad = np.iinfo(np.int32).max if jnp.issubdtype(x.dtype, jnp.integer) else np.nan
    return np.where(outside.reshape(outside.shape + (1,) * (x.ndim - 2)), bad, x).astype(x.dtype)

  head = make_head(LOSSES["egad"].loss.function)
  expected = value_and_gradients(head, problem, top_k)
  actual = value_and_gradients(head, problem, TopK(*map(poisoned, top_k)))
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_soft_cap_is_for_hidden_states_alone():
  top_k = top_k_teacher(jnp.array([[9.0, 0.0, -9.0]]), 2)
  teacher = chunk_teacher(top_k, 3, soft_cap=1.0)
  np.testing.assert_array_equal(teacher.logits, spread_tail(top_k, 3))


def test_misuse_names_the_argument():
  problem = random_problem()
  top_k = top_k_teacher(teacher_logits(problem), 5)
  head = distillation_head(LOSSES["egad"].loss.function)
  cases = [
    (top_k._replace(log_tail=None), "log_tail of a teacher's TopK must be given"),
    (top_k._replace(log_tail=top_k.log_tail[:2]), r"log_tail of a TopK must have shape \(4, 10\)"),
    (top_k_teacher(jnp.zeros((4, 10, 99)), 99), "k of their 37 entries"),
    (top_k._replace(ids=top_k.ids[:2]), "ids of a TopK must have shape"),
  ]
  for outputs, message in cases:
    with pytest.raises(ValueError, match=message):
      head.of_outputs(*problem[:2], outputs, problem.labels, problem.mask, {}, filled_context())
