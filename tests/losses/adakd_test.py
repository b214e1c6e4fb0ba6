"""AdaKD against an independent NumPy account of it, and closed forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses, methods
from egad_jax.losses import Temperature
from egad_jax.losses.adakd import adakd_loss
from egad_jax.losses.focus import Focus, FocusState, update_focus
from egad_jax.methods.adakd import make_adakd
from tests.losses.adakd_cases import CODE, EVERYTHING, IDTS, OPTIONS, at, compiled, filled_context


def softmax(z):
  weights = np.exp(z - z.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def numpy_tokens(batch, ratio, *, median="all", strength=0.5, base=1.0):
  """(valid student logits, teacher logits, labels, selected, temperatures), float64."""
  mask = np.array(batch.mask)
  student, teacher = (np.array(z, np.float64)[mask] for z in batch[:2])
  labels = np.array(batch.labels)[mask]
  p, q = softmax(teacher), softmax(student)
  difficulty = np.sqrt(1 - np.sqrt(p * q).sum(-1))
  k = max(1, int(len(p) * ratio))
  selected = np.zeros(len(p), bool)
  selected[np.argsort(-difficulty, kind="stable")[:k]] = True
  middle = np.median(difficulty)
  if median == "selected":
    middle = np.sort(difficulty[selected])[(k - 1) // 2]
  temperature = base * np.exp(-strength * np.tanh(np.log(difficulty / middle)))
  return student, teacher, labels, selected, temperature


@pytest.mark.parametrize("median", ["all", "selected"])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.8, 1.0])
def test_value(batch, ratio, median):
  step = compiled(temperature=IDTS, focus=Focus(median=median), ce_weight=0.2)
  (loss, (metrics, state)), _ = step(batch, at(ratio))
  student, teacher, labels, selected, t = numpy_tokens(batch, ratio, median=median)
  p, q = softmax(teacher / t[:, None]), softmax(student / t[:, None])
  reverse_kl = t**2 * (q * np.log(q / p)).sum(-1)
  cross_entropy = -np.log(softmax(student)[np.arange(len(labels)), labels])
  expected = reverse_kl[selected].mean() + 0.2 * cross_entropy.mean()
  np.testing.assert_allclose(loss, expected, rtol=2e-5)
  np.testing.assert_allclose(metrics["temperature_mean"], t.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["hard_fraction"], selected.mean(), rtol=1e-6)
  np.testing.assert_allclose(metrics["weight_mean"], 1, rtol=1e-6)
  difficulty = np.sqrt(1 - np.sqrt(softmax(teacher) * softmax(student)).sum(-1))
  np.testing.assert_allclose(metrics["difficulty"], difficulty.mean(), rtol=2e-5)
  np.testing.assert_allclose(metrics["distillation_loss"], reverse_kl[selected].mean(), rtol=2e-5)
  assert metrics["focus_ratio"] == jnp.float32(ratio)
  by_hand = update_focus(
    at(ratio), reverse_kl[selected].mean(), elapsed=0.3, focus=Focus(median=median)
  )
  np.testing.assert_allclose(state, by_hand, rtol=2e-5)


def test_golden_temperatures():
  """Difficulties .1, .2, .4, .8, .05 around their median, as two-word distributions."""
  difficulty = np.array([0.1, 0.2, 0.4, 0.8, 0.05])
  # With p = (1, 0) up to rounding, the squared Hellinger distance is 1 - sqrt(q_0).
  q = (1 - difficulty**2) ** 2
  student = np.stack([np.log(q), np.log1p(-q)], -1)
  teacher = np.tile([0.0, -800.0], (5, 1))
  words = student, teacher, np.zeros(5, np.int32), np.ones(5, bool)
  hardness = np.tanh(np.log(difficulty / 0.2))
  np.testing.assert_allclose(hardness, [-0.6, 0, 0.6, 0.882353, -0.882353], atol=5e-7)
  with jax.enable_x64(True):
    for ratio in (1.0, 0.6):
      _, (metrics, _) = compiled(divergence="forward_kl")(words, at(ratio))[0]
      np.testing.assert_allclose(metrics["difficulty"], difficulty.mean(), rtol=1e-12)
      expected = [1.349859, 1, 0.740818, 0.643279, 1.554535]
      np.testing.assert_allclose(metrics["temperature_mean"], np.mean(expected), atol=5e-7)
    # The code's median at r = .6 is that of .8, .4 and .2.
    _, (metrics, _) = compiled(divergence="forward_kl", **CODE)(words, at(0.6))[0]
    expected = np.exp(-0.5 * np.tanh(np.log(difficulty / 0.4)))
    np.testing.assert_allclose(metrics["temperature_mean"], expected.mean(), rtol=1e-7)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_gradient_is_that_of_constant_weights_and_temperatures(batch, divergence):
  with jax.enable_x64(True):
    exact = batch._replace(
      student=np.asarray(batch.student, np.float64), teacher=np.asarray(batch.teacher, np.float64)
    )
    (loss, _), gradient = compiled(divergence=divergence)(exact, at(0.5))
    assert loss.dtype == gradient.dtype == jnp.float64
  student, teacher, _, selected, t = numpy_tokens(batch, 0.5)
  t = t[:, None]
  p, q = softmax(teacher / t), softmax(student / t)
  of_token = t * (q - p)
  if divergence == "reverse_kl":
    log_ratio = np.log(q / p)
    of_token = t * q * (log_ratio - (q * log_ratio).sum(-1, keepdims=True))
  expected = np.zeros(batch.student.shape)
  expected[np.array(batch.mask)] = np.where(selected[:, None], of_token, 0) / selected.sum()
  np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize(("divergence", "t"), [("forward_kl", 2.0), ("reverse_kl", 1.0)])
def test_neutral_is_the_divergence(batch, divergence, t):
  def base(z):
    value = t**2 * getattr(losses, divergence)(z, batch.teacher, temperature=t)
    return losses.masked_mean(value, batch.mask)

  expected, expected_gradient = jax.jit(jax.value_and_grad(base))(batch.student)
  for options in (
    {"temperature": Temperature(position="median_ratio", base=t, strength=0.0)},
    {"temperature": Temperature(kind="fixed", base=t), "focus": Focus(ratio_step=0.0)},
  ):
    (loss, _), gradient = compiled(divergence=divergence, **options)(batch, at(1.0))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_masked_tokens_change_nothing(batch, name):
  step, batch = compiled(**OPTIONS[name]), type(batch)(*map(np.asarray, batch))
  (loss, others), gradient = step(batch, at(0.5))
  assert np.isfinite(loss)
  poison = lambda z: np.where(batch.mask[..., None], z, np.float32(np.nan))
  junk = np.where(batch.mask, batch.labels, np.int32(-100))
  poisoned = (poison(batch.student), poison(batch.teacher), junk, batch.mask)
  (again, poisoned_others), poisoned_gradient = step(poisoned, at(0.5))
  assert again == loss
  jax.tree.map(np.testing.assert_array_equal, poisoned_others, others)
  np.testing.assert_array_equal(poisoned_gradient, gradient)
  np.testing.assert_array_equal(np.asarray(gradient)[~batch.mask], 0)
  nothing = (*poisoned[:3], np.zeros_like(batch.mask))
  (zero, (metrics, state)), gradient = step(nothing, at(0.5))
  assert zero == 0
  np.testing.assert_array_equal(gradient, 0)
  jax.tree.map(np.testing.assert_array_equal, state, at(0.5))
  assert all(np.isfinite(metric) for metric in metrics.values())


@pytest.mark.parametrize("name", ["paper", "everything"])
def test_identical_models(batch, name):
  for ratio in (0.5, 1.0):
    (loss, (metrics, _)), gradient = compiled(**OPTIONS[name])(
      batch._replace(teacher=batch.student), at(ratio)
    )
    np.testing.assert_allclose(
      loss, metrics["cross_entropy"] * (0.2 * (name != "paper")), atol=1e-6
    )
    if name == "paper":
      np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert np.all(np.isfinite(gradient))


@pytest.mark.slow
def test_shapes_programs_and_dtypes(batch):
  options = EVERYTHING | {"divergence_options": {"alpha": 0.3}}
  step, batch = compiled(**EVERYTHING), type(batch)(*map(np.asarray, batch))
  (loss, (metrics, state)), _ = step(batch, at(0.5))
  eager, (eager_metrics, eager_state) = adakd_loss(*batch, state=at(0.5), elapsed=0.3, **options)
  np.testing.assert_allclose(eager, loss, rtol=1e-6)
  for name, value in (metrics | state._asdict()).items():
    other = (eager_metrics | eager_state._asdict())[name]
    np.testing.assert_allclose(other, value, rtol=1e-6, err_msg=name)
  flat = tuple(x.reshape(24, *x.shape[2:]) for x in batch)
  np.testing.assert_allclose(step(flat, at(0.5))[0][0], loss, rtol=1e-6)
  order = np.random.default_rng(0).permutation(24)
  np.testing.assert_allclose(step([x[order] for x in flat], at(0.5))[0][0], loss, rtol=1e-6)
  stacked = tuple(np.stack([x, x[::-1]]) for x in batch)
  function = lambda ratio, *b: adakd_loss(
    *b, state=at(0.5)._replace(ratio=ratio), elapsed=0.3, **options
  )[0]
  both = jax.jit(jax.vmap(function))(np.array([0.5, 0.9], np.float32), *stacked)
  np.testing.assert_allclose(both, [loss, step(batch, at(0.9))[0][0]], rtol=1e-6)
  half = batch._replace(
    student=batch.student.astype(jnp.bfloat16), teacher=batch.teacher.astype(jnp.bfloat16)
  )
  (value, _), _ = step(half, at(1.0))
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, step(batch, at(1.0))[0][0], rtol=0.03)
  wide = [np.pad(z, ((0, 0), (0, 0), (0, 3)), constant_values=5.0) for z in batch[:2]]
  hidden = jax.jit(
    lambda *b: adakd_loss(*b, state=at(0.5), elapsed=0.3, where=np.arange(14) < 11, **options)[0]
  )
  np.testing.assert_allclose(hidden(*wide, *batch[2:]), loss, rtol=1e-6)


def test_extremes_are_finite(batch):
  step, batch = compiled(), type(batch)(*map(np.asarray, batch))
  ruled_out = lambda z: np.where(np.arange(11) == 3, np.float32(-np.inf), z)
  for student, teacher in (
    (5e3 * batch.student, -5e3 * batch.student),
    (ruled_out(batch.student), batch.teacher),
    (batch.student, ruled_out(batch.teacher)),
    (ruled_out(batch.student), ruled_out(batch.teacher)),
  ):
    for ratio in (0.5, 1.0):
      (loss, (metrics, _)), gradient = step(
        batch._replace(student=student, teacher=teacher), at(ratio)
      )
      assert np.isfinite(loss)
      assert np.all(np.isfinite(gradient))
      assert 0 <= float(metrics["difficulty"]) <= 1


@pytest.mark.parametrize("compensation", ["per_token", "mean_norm"])
def test_without_tokens_loss_and_gradient_are_zero(batch, compensation):
  temperature = Temperature(kind="mean", compensation=compensation)
  step = compiled(temperature=temperature)
  (loss, _), gradient = step(batch._replace(mask=np.zeros_like(batch.mask)), at(0.5))
  assert loss == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", ["code", "everything"])
def test_gradient_reaches_the_student_only(batch, name):
  options = dict(OPTIONS[name])
  options["divergence_options"] = dict(options.get("divergence_options", ()))
  method = make_adakd(**options)
  filled = filled_context(method, batch, 0.5)[0].state

  def in_batch(student, teacher, state, elapsed):
    return adakd_loss(student, teacher, *batch[2:], state=state, elapsed=elapsed, **options)

  def running(student, teacher, state, elapsed):
    context = methods.Context(state, jnp.float32(0), elapsed)
    loss, stats = method.loss.function(student, teacher, batch.labels, {}, context)
    return losses.masked_mean(loss, batch.mask), stats

  for function, state in ((in_batch, at(0.5)), (running, filled)):

    @jax.jit
    def gradients(*arguments, function=function):
      (loss, rest), pull = jax.vjp(function, *arguments)
      zero, ones = jnp.zeros_like(loss), jax.tree.map(jnp.ones_like, rest)
      return pull((jnp.ones_like(loss), jax.tree.map(jnp.zeros_like, rest))), pull((zero, ones))

    of_loss, of_rest = gradients(batch.student, batch.teacher, state, jnp.float32(0.3))
    assert np.any(np.asarray(of_loss[0]) != 0)
    for gradient in jax.tree.leaves(of_loss[1:]):
      np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(of_rest[0], 0)
    np.testing.assert_array_equal(of_rest[1], 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"ce_weight": -1.0}, "ce_weight must be >= 0, got -1.0"),
    ({"divergence": "kl"}, "divergence must be one of"),
    ({"divergence_options": {"beta": 0.1}}, "reverse_kl takes the options"),
  ],
)
def test_misuse(batch, options, message):
  with pytest.raises(ValueError, match=message):
    make_adakd(**options)
  with pytest.raises(ValueError, match=message):
    adakd_loss(*batch, state=FocusState.init(), elapsed=0.0, **options)


def test_misuse_of_one_form(batch):
  with pytest.raises(ValueError, match="half_life must be a positive number of tokens, got 0"):
    make_adakd(half_life=0.0)
  call = functools.partial(adakd_loss, state=FocusState.init(), elapsed=0.0)
  with pytest.raises(ValueError, match="mask must have shape"):
    call(*batch[:3], batch.mask[0])
  with pytest.raises(TypeError, match="student_logits must be floating point"):
    call(batch.labels[..., None], *batch[1:])


def test_dtypes_where_float64_is_on(batch):
  with jax.enable_x64(True):
    step = jax.jit(functools.partial(adakd_loss, elapsed=0.5))
    for dtype in (np.float32, np.float64):
      logits = [np.asarray(z, dtype) for z in batch[:2]]
      loss, (metrics, state) = step(*logits, *batch[2:], state=at(0.5))
      assert {x.dtype for x in (loss, *metrics.values())} == {jnp.dtype(dtype)}
      assert {x.dtype for x in state} == {jnp.dtype(jnp.float32)}


def test_a_number_is_a_fixed_temperature(batch):
  loss = functools.partial(adakd_loss, *batch, state=at(0.5), elapsed=0.5)
  assert loss(temperature=2.0)[0] == loss(temperature=Temperature(kind="fixed", base=2.0))[0]
  with pytest.raises(TypeError, match="temperature must be a Temperature, got 'hot'"):
    loss(temperature="hot")
  with pytest.raises(TypeError, match="state must be a FocusState, got None"):
    adakd_loss(*batch, state=None, elapsed=0.5)


def test_the_mean_temperature_is_that_of_the_tokens_in_the_mask(batch):
  mean = Temperature(kind="mean", position="median_ratio", base=IDTS.base, strength=IDTS.strength)
  (_, (metrics, _)), _ = compiled(temperature=mean)(batch, at(1.0))
  *_, each = numpy_tokens(batch, 1.0, strength=IDTS.strength, base=IDTS.base)
  np.testing.assert_allclose(metrics["temperature_mean"], each.mean(), rtol=1e-5)


def test_without_a_focus_every_token_weighs_one(batch):
  (_, (metrics, _)), _ = compiled(**OPTIONS["off"])(batch, at(1.0))
  assert metrics["weight_mean"] == 1
