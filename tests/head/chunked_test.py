from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.head import dense_head, distillation_head
from egad_jax.head.logits import logits_from, soft_capped
from tests.head.problems import (
  Problem,
  extras_for,
  random_problem,
  token_loss,
  value_and_gradients,
)


def assert_same(actual, expected, tolerance=1e-5):
  """Relative to the norm of each array, the way the budget is stated."""
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-12)


@pytest.fixture(scope="module", params=[(None, None), (3.0, 5.0)])
def dense(request):
  """Soft caps as options, and what the dense head makes of them."""
  options = dict(zip(("student_soft_cap", "teacher_soft_cap"), request.param, strict=True))
  return options, value_and_gradients(dense_head(token_loss, **options), random_problem())


@pytest.mark.short_form(7)
@pytest.mark.parametrize("chunk_size", [1, 7, 16, 40, 64, None])
def test_equals_dense_in_value_gradient_and_stats(chunk_size, dense):
  options, expected = dense
  chunked = distillation_head(token_loss, chunk_size=chunk_size, **options)
  assert_same(value_and_gradients(chunked, random_problem()), expected)


def test_gradient_equals_float64_finite_difference():
  with jax.enable_x64(True):
    problem = random_problem(batch=1, seq=5, vocab=11, dtype=np.float64)
    head = distillation_head(token_loss, chunk_size=2)
    (_, _), gradients = value_and_gradients(head, problem)
    for i, name in enumerate(("student_hidden", "student_unembedding")):
      base = getattr(problem, name)
      direction = np.random.default_rng(i).normal(size=base.shape)
      step = 1e-6
      up = value_and_gradients(head, problem, **{name: base + step * direction})[0][0]
      down = value_and_gradients(head, problem, **{name: base - step * direction})[0][0]
      numeric = (up - down) / (2 * step)
      assert float(np.vdot(gradients[i], direction)) == pytest.approx(float(numeric), rel=1e-7)


def test_cotangent_scales_the_gradient():
  problem = random_problem()
  head = distillation_head(token_loss, chunk_size=8)

  def scaled(hidden, unembedding):
    rest = (extras_for(problem), {"base": jnp.float32(1.3)})
    return -2.5 * head(hidden, unembedding, *problem[2:], *rest)[0]

  _, expected = value_and_gradients(head, problem)
  found = jax.jit(jax.grad(scaled, argnums=(0, 1)))(*problem[:2])
  assert_same(found, [-2.5 * np.asarray(gradient) for gradient in expected], 1e-6)


def test_evaluation_is_the_value_of_training():
  problem = random_problem()
  head = distillation_head(token_loss, chunk_size=7)
  evaluated = head(*problem, extras_for(problem), {"base": jnp.float32(1.3)})
  assert_same(evaluated, value_and_gradients(head, problem)[0], 1e-7)


def test_tokens_outside_the_mask_change_nothing_nan_included():
  problem = random_problem()
  # The last token is out, and the last chunk has places to fill.
  problem = Problem(*map(np.array, problem))
  problem.mask[-1, -1] = False
  assert int(problem.mask.sum()) % 7
  head = distillation_head(token_loss, chunk_size=7)
  expected = value_and_gradients(head, problem)
  outside = ~problem.mask[..., None]
  for poison in map(np.float32, (np.nan, np.inf, 1e30)):
    actual = value_and_gradients(
      head,
      problem,
      student_hidden=np.where(outside, poison, problem.student_hidden),
      teacher_hidden=np.where(outside, poison, problem.teacher_hidden),
      labels=np.where(problem.mask, problem.labels, np.int32(10**6)),
    )
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
      np.testing.assert_array_equal(a, b)
    assert not np.any(np.asarray(actual[1][0])[~problem.mask])


def test_padding_rows_of_the_vocabulary_change_nothing():
  problem = Problem(*map(np.asarray, random_problem()))
  expected = value_and_gradients(distillation_head(token_loss, chunk_size=7), problem)
  junk = np.full((5, 8), np.nan, np.float32), np.full((3, 12), np.inf, np.float32)
  (value, stats), (hidden, unembedding) = value_and_gradients(
    distillation_head(token_loss, chunk_size=7, vocab_size=37),
    problem,
    student_unembedding=np.concatenate([problem.student_unembedding, junk[0]]),
    teacher_unembedding=np.concatenate([problem.teacher_unembedding, junk[1]]),
  )
  unembedding = np.asarray(unembedding)
  assert_same(((value, stats), (hidden, unembedding[:37])), expected, 1e-7)
  assert not np.any(unembedding[37:])


def test_all_masked_is_zero_with_zero_gradient():
  problem = random_problem()
  nothing = jnp.zeros_like(problem.mask)
  actual = value_and_gradients(distillation_head(token_loss), problem, mask=nothing)
  for leaf in jax.tree.leaves(actual):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_nothing_flows_to_the_teacher():
  problem = random_problem()
  head = distillation_head(token_loss, chunk_size=8)

  def objective(teacher_hidden, teacher_unembedding):
    rest = (extras_for(problem), {"base": jnp.float32(1.3)})
    arrays = (*problem[:2], teacher_hidden, teacher_unembedding, *problem[4:])
    return head(*arrays, *rest)[0]

  for gradient in jax.jit(jax.grad(objective, argnums=(0, 1)))(*problem[2:4]):
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_float32_master_unembedding_gets_a_float32_gradient_from_bfloat16_hidden():
  problem = random_problem()
  half = problem._replace(
    student_hidden=problem.student_hidden.astype(jnp.bfloat16),
    teacher_hidden=problem.teacher_hidden.astype(jnp.bfloat16),
  )
  (loss, _), gradients = value_and_gradients(distillation_head(token_loss), half)
  assert (loss.dtype, gradients[0].dtype, gradients[1].dtype) == (
    jnp.float32,
    jnp.bfloat16,
    jnp.float32,
  )
  # float32 logits: the loss keeps what the inputs say, to far below the spacing of bfloat16.
  rounded = half._replace(
    student_hidden=half.student_hidden.astype(jnp.float32),
    teacher_hidden=half.teacher_hidden.astype(jnp.float32),
    student_unembedding=half.student_unembedding.astype(jnp.bfloat16).astype(jnp.float32),
    teacher_unembedding=half.teacher_unembedding.astype(jnp.bfloat16).astype(jnp.float32),
  )
  expected = value_and_gradients(dense_head(token_loss), rounded)
  assert float(loss) == pytest.approx(float(expected[0][0]), rel=1e-6)
  assert_same(gradients, expected[1], 5e-3)


def test_memory_does_not_hold_all_logits_and_work_is_the_minimum():
  batch, seq, vocab = 8, 128, 4096
  problem = random_problem(batch=batch, seq=seq, vocab=vocab)

  def compiled(head):
    return jax.jit(lambda p: value_and_gradients(head, p)).lower(problem).compile()

  one_copy = batch * seq * vocab * 4
  chunked = compiled(distillation_head(token_loss, chunk_size=64)).memory_analysis()
  dense = compiled(dense_head(token_loss)).memory_analysis()
  assert chunked.temp_size_in_bytes < one_copy
  assert dense.temp_size_in_bytes > 2 * one_copy


def test_evaluation_multiplies_only_for_the_logits():
  problem = random_problem()
  head = distillation_head(token_loss)
  arguments = (extras_for(problem), {"base": jnp.float32(1.3)})
  jaxpr = str(jax.make_jaxpr(lambda p: head(*p, *arguments))(problem))
  gradient = str(jax.make_jaxpr(lambda p: value_and_gradients(head, p))(problem))
  assert jaxpr.count("dot_general") == 2
  assert gradient.count("dot_general") == 4


def test_misuse_names_the_argument():
  problem = random_problem()
  arguments = (extras_for(problem), {"base": jnp.float32(1.3)})
  wide = jnp.concatenate([problem.student_unembedding] * 2)
  cases = [
    ({"student_unembedding": wide}, {}, "pass vocab_size"),
    ({"student_unembedding": wide[:, :2]}, {}, r"student_unembedding must be \[vocab"),
    ({"student_unembedding": wide}, {"vocab_size": 38}, r"vocab_size \(38\) must be between"),
    ({"teacher_unembedding": problem.student_unembedding}, {}, "teacher_unembedding must be"),
    ({"labels": problem.labels[:2]}, {}, "labels must have the shape of the tokens"),
    ({"teacher_hidden": problem.teacher_hidden[:, :3]}, {}, "teacher_hidden"),
  ]
  for replaced, options, message in cases:
    with pytest.raises(ValueError, match=message):
      distillation_head(token_loss, **options)(*problem._replace(**replaced), *arguments)


def test_soft_cap():
  logits = jnp.array([-100.0, -1.0, 0.0, 2.0, 100.0])
  np.testing.assert_array_equal(soft_capped(logits, None), logits)
  np.testing.assert_allclose(soft_capped(logits, 3.0), 3 * np.tanh(logits / 3), rtol=1e-6)


def test_logits_of_bfloat16_are_not_rounded_to_it():
  hidden, unembedding = (
    jnp.array([[1.0, 1.0]], jnp.bfloat16),
    jnp.array([[256.0, 1.0]], jnp.bfloat16),
  )
  logits = logits_from(hidden, unembedding)
  assert logits.dtype == jnp.float32
  assert logits[0, 0] == 257  # bfloat16 has 256 and 258.


@pytest.fixture(scope="module")
def counting():
  """A head of chunks of 7 tokens, and a list that grows by one entry per chunk."""
  runs = []

  def counted(*arguments):
    jax.debug.callback(lambda: runs.append(1))
    return token_loss(*arguments)

  return jax.jit(distillation_head(counted, chunk_size=7)), runs


@pytest.mark.parametrize(("tokens", "chunks"), [(0, 0), (1, 1), (7, 1), (8, 2), (40, 6)])
def test_the_loop_runs_only_for_the_tokens_in_the_mask(tokens, chunks, counting):
  problem = random_problem()
  mask = np.zeros(problem.mask.size, bool)
  mask[np.random.default_rng(0).permutation(mask.size)[:tokens]] = True
  head, runs = counting
  runs.clear()
  jax.block_until_ready(value_and_gradients(head, problem, mask=mask.reshape(problem.mask.shape)))
  jax.effects_barrier()
  assert len(runs) == chunks


def test_a_second_derivative_is_refused():
  problem = random_problem()
  rest = (*problem[2:], extras_for(problem), {"base": jnp.float32(1.3)})

  def total(head, hidden):
    return head(hidden, problem.student_unembedding, *rest)[0]

  chunked = jax.grad(lambda hidden: total(distillation_head(token_loss), hidden))
  with pytest.raises(TypeError, match=r"no second derivative.*egad_jax\.head\.dense_head"):
    jax.grad(lambda hidden: jnp.sum(chunked(hidden) ** 2))(problem.student_hidden)
  with pytest.raises(TypeError, match="no second derivative"):
    jax.jvp(chunked, (problem.student_hidden,), (problem.student_hidden,))
  dense = jax.grad(lambda hidden: total(dense_head(token_loss), hidden))
  second = jax.jit(jax.grad(lambda hidden: jnp.sum(dense(hidden) ** 2)))
  assert np.any(second(problem.student_hidden))


def test_a_bias_is_a_column_of_the_unembedding():
  problem = random_problem()
  bias = np.linspace(-1, 1, 37, dtype=np.float32)

  def widened(hidden, unembedding):
    one = np.ones((*hidden.shape[:-1], 1), np.float32)
    return (
      np.concatenate([hidden, one], -1),
      np.concatenate([unembedding, bias[:, None]], -1),
    )

  def biased(student_logits, teacher_logits, labels, extras, context):
    shifted = (student_logits + bias[None], teacher_logits + bias[None])
    return token_loss(*shifted, labels, extras, context)

  _, expected = value_and_gradients(dense_head(biased), problem)
  _, found = value_and_gradients(
    distillation_head(token_loss, chunk_size=7),
    problem._replace(
      teacher_hidden=widened(*problem[2:4])[0], teacher_unembedding=widened(*problem[2:4])[1]
    ),
    student_hidden=widened(*problem[:2])[0],
    student_unembedding=widened(*problem[:2])[1],
  )
  assert_same([np.asarray(gradient)[..., :-1] for gradient in found], expected)
