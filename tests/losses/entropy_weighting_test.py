"""SE-KD and EA-KD against NumPy accounts of them, in-batch and running."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses.entropy_weighting import ea_kd_loss, entropy_weights, se_kd_loss
from egad_jax.losses.top_k import top_k_teacher
from egad_jax.methods.entropy_weighting import make_ea_kd, make_se_kd
from egad_jax.methods.explicit_knowledge import make_aekt

LOSSES = {
  "se_kd": functools.partial(se_kd_loss, fraction=0.4, temperature=2.0, ce_weight=0.3),
  "ea_kd": functools.partial(ea_kd_loss, temperature=2.0, ce_weight=0.3),
  "ea_kd_reverse": functools.partial(ea_kd_loss, divergence="reverse_kl", entropy_bound=100.0),
}
MAKERS = {
  "se_kd": functools.partial(make_se_kd, fraction=0.4, temperature=2.0, ce_weight=0.3),
  "ea_kd": functools.partial(make_ea_kd, temperature=2.0, ce_weight=0.3),
}

compiled = {name: jax.jit(function) for name, function in LOSSES.items()}
token_entropy = jax.jit(losses.token_entropy)


def softmax(z):
  e = np.exp(np.asarray(z, np.float64) - np.max(z, axis=-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def entropy(z):
  return -(softmax(z) * np.log(softmax(z))).sum(-1)


def divergence(batch, temperature):
  p, q = softmax(batch.teacher / temperature), softmax(batch.student / temperature)
  return temperature**2 * (p * np.log(p / q)).sum(-1)


def cross_entropy(batch):
  q = softmax(batch.student)
  return -np.log(np.take_along_axis(q, np.array(batch.labels)[..., None], -1))[..., 0]


def student_stats(batch):
  """Stats as of a step, of all tokens of the batch."""
  entropies = (token_entropy(z) for z in (batch.student, batch.teacher))
  return dict(zip(("student_entropy", "teacher_entropy"), entropies, strict=True))


@pytest.fixture
def batch(batch):
  return jax.tree.map(np.asarray, batch)


@pytest.fixture
def contexts(batch, context):
  """For each method a context whose own state has seen the batch."""

  def seen(method):
    state = jax.jit(method.observe)(method.init_state(), student_stats(batch), batch.mask)
    return context._replace(state=context.state._replace(method=state.method))

  return seen


def test_se_kd_keeps_the_top_share_of_each_sequence(batch):
  loss, metrics = compiled["se_kd"](*batch)
  mask = np.array(batch.mask)
  h, d = entropy(batch.student), divergence(batch, 2.0)
  kept = np.zeros_like(mask)
  for row in range(3):
    wanted = int(np.ceil(0.4 * mask[row].sum() - 1e-6))
    kept[row, np.argsort(-np.where(mask[row], h[row], -1))[:wanted]] = True
  ce = cross_entropy(batch)[mask].mean()
  np.testing.assert_allclose(loss, d[kept].mean() + 0.3 * ce, rtol=1e-5)
  np.testing.assert_allclose(metrics["distillation_loss"], d[kept].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["hard_fraction"], kept.sum() / mask.sum(), rtol=1e-6)
  np.testing.assert_allclose(metrics["weight_mean"], 1.0, rtol=1e-6)


def test_se_kd_with_every_token_is_kd(batch):
  loss, _ = jax.jit(functools.partial(se_kd_loss, fraction=1.0))(*batch)
  np.testing.assert_allclose(loss, divergence(batch, 1.0)[np.array(batch.mask)].mean(), rtol=1e-5)


def test_se_kd_running_weighs_by_position(batch, contexts):
  method = MAKERS["se_kd"]()
  context = contexts(method)

  @jax.jit
  def compute(batch, context):
    own = context.state.method
    kept = own.top_share(losses.token_entropy(batch.student), 0.4)
    found = method.loss.function(*batch[:3], {}, context)
    return found, kept, method.metrics(context.state), own.quantile(0.6)

  (loss, stats), kept, metrics, quantile = jax.tree.map(np.asarray, compute(batch, context))
  assert set(np.unique(kept[(kept != 0) & (kept != 1)])).issubset({kept[kept < 1].max()})
  np.testing.assert_allclose(kept[np.array(batch.mask)].mean(), 0.4, rtol=1e-5)
  np.testing.assert_array_equal(stats["hard"], kept)
  np.testing.assert_allclose(stats["weight"], kept / 0.4, rtol=1e-6)
  expected = kept / 0.4 * divergence(batch, 2.0) + 0.3 * cross_entropy(batch)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  np.testing.assert_allclose(metrics["kept_from_student_entropy"], quantile)


def test_se_kd_state_is_of_the_student(batch):
  method = make_se_kd(half_life=100.0)
  stats = student_stats(batch)
  update, observe = jax.jit(method.update), jax.jit(method.observe)
  updated = update(method.init_state(), stats, batch.mask, np.float32(0.5))
  one = jax.jit(functools.partial(losses.EntropyDistribution.update, half_life=100.0))
  for distribution, name in ((updated.method, "student"), (updated.entropy, "teacher")):
    expected = one(losses.EntropyDistribution.init(), stats[f"{name}_entropy"], batch.mask)
    np.testing.assert_array_equal(distribution.mass, expected.mass)
  nothing = update(updated, stats, np.zeros_like(batch.mask), np.float32(0.5))
  for before, after in zip(jax.tree.leaves(updated), jax.tree.leaves(nothing), strict=True):
    np.testing.assert_array_equal(after, before)
  order = np.random.default_rng(0).permutation(24)
  flat = {name: np.asarray(stat).reshape(24)[order] for name, stat in stats.items()}
  again = observe(method.init_state(), flat, batch.mask.reshape(24)[order])
  np.testing.assert_array_equal(again.method.mass, updated.method.mass)


def test_ea_kd_golden_values():
  # H at T = 2, from the golden values of the divergences, and log 4.
  weight = entropy_weights(jnp.float32(1.366834), jnp.float32(1.245050), bound=np.log(4))
  np.testing.assert_allclose(weight, 1.236311, atol=1e-6)
  student = np.array([[1.0, 1.0, 1.0, 0.0]], np.float32)
  teacher = np.array([[2.0, 1.0, 0.0, -1.0]], np.float32)
  function = jax.jit(functools.partial(ea_kd_loss, entropy_temperature=2.0))
  loss, metrics = function(student, teacher, np.array([0]), np.array([True]))
  np.testing.assert_allclose(metrics["weight_mean"], 1.236311, atol=1e-6)
  np.testing.assert_allclose(loss, 1.236311 * 0.298805, atol=1e-6)


@pytest.mark.parametrize("bound", [None, 100.0])
def test_ea_kd_formula_in_batch_and_running(batch, contexts, bound):
  options = {"entropy_bound": bound, "temperature": 2.0, "ce_weight": 0.3}
  h_t, h_s = (entropy(np.array(z) / 3) for z in (batch.teacher, batch.student))
  weight = 0.5 * (h_t + h_t * h_s / (bound or np.log(11)))
  expected = weight * divergence(batch, 2.0) + 0.3 * cross_entropy(batch)
  method = make_ea_kd(**options)
  loss, stats = jax.jit(method.loss.function)(*batch[:3], {}, contexts(method))
  np.testing.assert_allclose(stats["weight"], weight, rtol=1e-5)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  loss, metrics = jax.jit(functools.partial(ea_kd_loss, **options))(*batch)
  np.testing.assert_allclose(loss, expected[np.array(batch.mask)].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["weight_mean"], weight[np.array(batch.mask)].mean(), rtol=1e-5)


def test_ea_kd_weights_are_bounded_and_grow():
  h = np.linspace(0.0, np.log(11), 7).astype(np.float32)
  student, teacher = np.meshgrid(h, h)

  @jax.jit
  def compute(student, teacher, h):
    total = lambda s, t, bound: entropy_weights(s, t, bound=bound).sum()
    return (
      entropy_weights(student, teacher, bound=np.log(11)),
      jax.grad(total, argnums=(0, 1, 2))(student, teacher, 3.0),
      entropy_weights(h, h, bound=0.0),
    )

  weights, gradients, unbounded = jax.tree.map(np.asarray, compute(student, teacher, h))
  assert weights.min() == 0
  np.testing.assert_allclose(weights.max(), np.log(11), rtol=1e-6)
  assert np.all(np.diff(weights, axis=0) > 0)  # With the teacher's entropy.
  assert np.all(np.diff(weights[1:], axis=1) > 0)  # With the student's.
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)
  np.testing.assert_array_equal(unbounded, h / 2)


@functools.partial(jax.jit, static_argnums=0)
def graded(name, *batch):
  return jax.value_and_grad(lambda *b: LOSSES[name](*b)[0])(*batch)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_tokens_change_nothing(batch, name):
  value, gradient = graded(name, *batch)
  assert np.isfinite(value)
  assert np.any(gradient != 0)
  poison = lambda z: np.where(batch.mask[..., None], z, np.float32(np.nan))
  labels = np.where(batch.mask, batch.labels, -100).astype(np.int32)
  again, poisoned = graded(name, poison(batch.student), poison(batch.teacher), labels, batch.mask)
  assert again == value
  np.testing.assert_array_equal(poisoned, gradient)
  np.testing.assert_array_equal(np.asarray(gradient)[~batch.mask], 0)
  nothing = np.zeros_like(batch.mask)
  zero, gradient = graded(name, poison(batch.student), poison(batch.teacher), labels, nothing)
  assert zero == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_jit_axes_columns_and_dtype(batch, name):
  function = LOSSES[name]

  @jax.jit
  def others(*batch):
    stacked = [jnp.stack([x, x[::-1]]) for x in batch]
    wide = [jnp.pad(z, ((0, 0), (0, 0), (0, 5)), constant_values=3.0) for z in batch[:2]]
    half = [z.astype(jnp.bfloat16) for z in batch[:2]]
    return (
      jax.vmap(function)(*stacked)[0],
      function(*(x[None] for x in batch))[0],
      function(*wide, *batch[2:], where=jnp.arange(16) < 11)[0],
      function(*half, *batch[2:])[0],
    )

  loss, metrics = function(*batch)
  jitted, jitted_metrics = compiled[name](*batch)
  np.testing.assert_allclose(jitted, loss, rtol=1e-6)
  for metric, value in metrics.items():
    np.testing.assert_allclose(jitted_metrics[metric], value, rtol=1e-6, atol=1e-7)
  mapped, more_axes, hidden, half = others(*batch)
  np.testing.assert_allclose(mapped, [loss, loss], rtol=1e-6)
  np.testing.assert_allclose(more_axes, loss, rtol=1e-6)
  np.testing.assert_allclose(hidden, loss, rtol=1e-6)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, loss, rtol=0.1)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_and_ruled_out_entries_are_finite(batch, name):
  hide = lambda z: np.where(np.arange(11) == 0, np.float32(-np.inf), z)
  for student, teacher in (
    (1e4 * np.sign(batch.student), 1e4 * np.sign(batch.teacher)),
    (hide(batch.student), batch.teacher),
    (batch.student, hide(batch.teacher)),
    (hide(batch.student), hide(batch.teacher)),
  ):
    value, gradient = graded(name, student, teacher, *batch[2:])
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", MAKERS)
def test_gradient_is_that_of_constant_weights(batch, contexts, name):
  with jax.enable_x64(True):
    student, teacher = (np.asarray(z, np.float64) for z in batch[:2])
    method = MAKERS[name](ce_weight=0.0)
    context = contexts(method)

    def total(student, teacher):
      loss, stats = method.loss.function(student, teacher, batch.labels, {}, context)
      return loss.sum(), stats["weight"]

    step = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    (to_student, to_teacher), weight = step(student, teacher)
    expected = np.array(weight)[..., None] * 2 * (softmax(student / 2) - softmax(teacher / 2))
    np.testing.assert_allclose(to_student, expected, atol=1e-12)
    np.testing.assert_array_equal(to_teacher, 0)


@pytest.mark.parametrize("name", MAKERS)
def test_models_that_agree_have_nothing_to_learn(batch, contexts, name):
  method = MAKERS[name](ce_weight=0.0)
  context = contexts(method)
  function = lambda z: method.loss.function(z, batch.student, batch.labels, {}, context)[0].sum()
  value, gradient = jax.jit(jax.value_and_grad(function))(batch.student)
  np.testing.assert_allclose(value, 0, atol=1e-5)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_do_not_read_each_other(batch, contexts, name):
  method = MAKERS[name]()
  context = contexts(method)
  token_loss = jax.jit(method.loss.function)
  whole, stats = token_loss(*batch[:3], {}, context)
  part, part_stats = token_loss(*(x[1, 2:5] for x in batch[:3]), {}, context)
  np.testing.assert_allclose(part, np.asarray(whole)[1, 2:5], rtol=1e-5, atol=1e-6)
  assert set(part_stats) == set(stats)


@pytest.mark.parametrize(
  ("maker", "options", "message"),
  [
    (make_se_kd, {"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
    (make_se_kd, {"temperature": 0.0}, "temperature must be a positive temperature, got 0.0"),
    (make_se_kd, {"ce_weight": -1.0}, "ce_weight must be >= 0, got -1.0"),
    (make_se_kd, {"half_life": 0.0}, "half_life must be a positive number of tokens, got 0.0"),
    (make_se_kd, {"divergence": "kl"}, "divergence must be one of forward_kl"),
    (make_ea_kd, {"entropy_temperature": -1.0}, "entropy_temperature must be a positive temp"),
    (make_ea_kd, {"entropy_bound": 0.0}, "entropy_bound must be a positive entropy or None, got 0"),
    (make_ea_kd, {"temperature": float("inf")}, "temperature must be a positive temperature"),
    (make_ea_kd, {"ce_weight": -1.0}, "ce_weight must be >= 0, got -1.0"),
    (make_ea_kd, {"half_life": 0.0}, "half_life must be a positive number of tokens, got 0.0"),
  ],
)
def test_misuse(batch, maker, options, message):
  with pytest.raises(ValueError, match=message):
    maker(**options)
  if "half_life" not in options:
    function = se_kd_loss if maker is make_se_kd else ea_kd_loss
    with pytest.raises(ValueError, match=message):
      function(*batch, **options)


def test_teachers_in_top_k_form(batch, contexts):
  top = jax.jit(top_k_teacher, static_argnums=1)(batch.teacher, 11)
  method = MAKERS["se_kd"]()
  context = contexts(method)
  token_loss = jax.jit(method.loss.function)
  dense, _ = token_loss(*batch[:3], {}, context)
  sparse, _ = token_loss(batch.student, top, batch.labels, {}, context)
  np.testing.assert_allclose(sparse, dense, rtol=1e-4, atol=1e-5)
  for method in (make_ea_kd(), make_aekt()):
    with pytest.raises(TypeError, match="needs teacher_logits over the whole vocabulary"):
      method.loss.function(batch.student, top, batch.labels, {}, context)


def test_wrong_types_and_shapes(batch):
  with pytest.raises(TypeError, match="teacher_entropy must be floating point"):
    entropy_weights(jnp.ones(2), jnp.ones(2, int), bound=1.0)
  with pytest.raises(ValueError, match=r"must have shape \[..., seq\]"):
    se_kd_loss(*(x[0, 0] for x in batch))
