"""TAID: the interpolated target against closed forms, its schedule against NumPy, both forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses.taid import Interpolation, InterpolationState, taid_loss, update_interpolation
from egad_jax.methods.taid import make_taid

Z_STUDENT, Z_TEACHER = jnp.array([[1.0, 1.0, 1.0, 0.0]]), jnp.array([[2.0, 1.0, 0.0, -1.0]])
ONE_LABEL, ONE = jnp.array([0]), jnp.array([True])


def at(share):
  return InterpolationState(jnp.float32(share), jnp.float32(0.1), jnp.float32(2.0))


def loss_at(share, *batch, **options):
  return taid_loss(*batch, state=at(share), elapsed=0.3, **options)[0]


@functools.lru_cache
def compiled(**options):
  """Jitted (batch, state) -> ((loss, (metrics, state)), gradient to the student)."""

  def function(student, rest, state):
    return taid_loss(student, *rest, state=state, elapsed=0.3, **options)

  step = jax.jit(jax.value_and_grad(function, has_aux=True))
  return lambda batch, state: step(batch[0], tuple(batch[1:]), state)


def softmax(z):
  weights = np.exp(z - z.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


@pytest.fixture
def rows(batch):
  return batch.student.reshape(24, 11), batch.teacher.reshape(24, 11), batch.labels.reshape(24)


def with_own(context, own):
  return context._replace(state=context.state._replace(method=own))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.055403), (2.0, 4 * 0.014236)])
def test_golden_value(temperature, expected):
  batch = Z_STUDENT, Z_TEACHER, ONE_LABEL, ONE
  (loss, _), _ = compiled(temperature=temperature)(batch, at(0.4))
  np.testing.assert_allclose(loss, expected, atol=5e-7 * temperature**2, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient_is_q_minus_u(batch, temperature):
  exact = [np.asarray(x, np.float64 if i < 2 else None) for i, x in enumerate(batch)]
  student, teacher, labels, mask = exact
  one_hot, q_1 = np.eye(11)[labels], softmax(student)
  for share in (0.0, 0.4, 1.0):
    with jax.enable_x64(True):
      step = compiled(temperature=temperature, ce_weight=0.2)
      (value, _), gradient = step(exact, at(share))
      assert value.dtype == gradient.dtype == jnp.float64
    share = float(np.float32(share))
    u = softmax(((1 - share) * student + share * teacher) / temperature)
    q = softmax(student / temperature)
    expected = temperature * (q - u) + 0.2 * (q_1 - one_hot)
    expected = np.where(mask[..., None], expected, 0) / mask.sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-14)
    per_token = temperature**2 * (u * np.log(u / q)).sum(-1) - 0.2 * (one_hot * np.log(q_1)).sum(-1)
    np.testing.assert_allclose(value, per_token[mask].mean(), rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_ends(batch, temperature):
  step = compiled(temperature=temperature)
  (to_teacher, _), gradient = step(batch, at(1.0))

  def forward(z):
    value = losses.forward_kl(z, batch.teacher, temperature=temperature)
    return losses.masked_mean(temperature**2 * value, batch.mask)

  expected, expected_gradient = jax.jit(jax.value_and_grad(forward))(batch.student)
  np.testing.assert_allclose(to_teacher, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)
  (to_itself, _), gradient = step(batch, at(0.0))
  np.testing.assert_allclose(to_itself, 0, atol=1e-6)
  np.testing.assert_allclose(gradient, 0, atol=1e-7)
  values = [float(step(batch, at(share))[0][0]) for share in np.linspace(0, 1, 6)]
  assert np.all(np.diff(values) > 0)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.77, 1.0])
def test_identical_models(batch, share):
  (loss, _), gradient = compiled()(batch._replace(teacher=batch.student), at(share))
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  np.testing.assert_allclose(gradient, 0, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_ruled_out_columns(batch, share):
  """Columns at -inf on both sides, or hidden, are no columns; on one side they cost 100 nats."""
  (loss, _), gradient = compiled()(batch, at(share))
  wide = [np.pad(z, ((0, 0), (0, 0), (0, 3)), constant_values=-np.inf) for z in batch[:2]]
  (padded, _), padded_gradient = compiled()(
    batch._replace(student=wide[0], teacher=wide[1]), at(share)
  )
  np.testing.assert_allclose(padded, loss, rtol=1e-6, atol=1e-7)
  padded_gradient = np.asarray(padded_gradient)
  np.testing.assert_allclose(padded_gradient[..., :11], gradient, atol=1e-7)
  np.testing.assert_array_equal(padded_gradient[..., 11:], 0)
  junk = [np.pad(z, ((0, 0), (0, 0), (0, 3)), constant_values=7.0) for z in batch[:2]]
  hidden = jax.jit(lambda *b: loss_at(share, *b, where=np.arange(14) < 11))(*junk, *batch[2:])
  np.testing.assert_allclose(hidden, loss, rtol=1e-6, atol=1e-7)
  for name in ("student", "teacher"):
    ruled_out = np.where(np.arange(11) == 2, np.float32(-np.inf), getattr(batch, name))
    one_side = batch._replace(**{name: ruled_out})
    (value, _), one_gradient = compiled()(one_side, at(share))
    assert np.isfinite(value)
    assert np.all(np.isfinite(one_gradient))
    assert float(value) >= -1e-6
    if 0 < share < 1:  # u is 0 there: the loss of a target without the column.
      z_s, z_t = (np.array(z, np.float64) for z in one_side[:2])
      kept, t = np.arange(11) != 2, float(np.float32(share))
      u = softmax(((1 - t) * z_s + t * z_t)[..., kept])
      expected = (u * np.log(u / softmax(z_s)[..., kept])).sum(-1)[np.array(batch.mask)].mean()
      np.testing.assert_allclose(value, expected, rtol=1e-5)
  disjoint, other = (
    np.broadcast_to(np.where(kept, 0.0, -np.inf).astype(np.float32), (3, 8, 11))
    for kept in (np.arange(11) < 5, np.arange(11) >= 5)
  )
  (value, _), one_gradient = compiled()(batch._replace(student=disjoint, teacher=other), at(share))
  assert bool(jnp.isfinite(value) & jnp.all(jnp.isfinite(one_gradient)))


def test_extreme_logits_and_bfloat16(batch):
  huge = batch._replace(student=5e3 * batch.student, teacher=-5e3 * batch.student)
  (loss, _), gradient = compiled()(huge, at(0.4))
  assert bool(jnp.isfinite(loss) & jnp.all(jnp.isfinite(gradient)))
  (padded, _), _ = compiled()(
    huge._replace(
      student=jnp.pad(huge.student, ((0, 0), (0, 0), (0, 3)), constant_values=-jnp.inf),
      teacher=jnp.pad(huge.teacher, ((0, 0), (0, 0), (0, 3)), constant_values=-jnp.inf),
    ),
    at(0.4),
  )
  np.testing.assert_allclose(padded, loss, rtol=1e-6)
  half = batch._replace(
    **{n: getattr(batch, n).astype(jnp.bfloat16) for n in ("student", "teacher")}
  )
  (value, _), gradient = compiled()(half, at(0.4))
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, compiled()(batch, at(0.4))[0][0], rtol=0.02)


def test_masked_tokens_change_nothing(batch):
  step = compiled(ce_weight=0.3, temperature=2.0)
  (loss, (metrics, state)), gradient = step(batch, at(0.4))
  mask = np.asarray(batch.mask)
  poison = lambda z: np.where(mask[..., None], z, np.float32(np.nan))
  junk = np.where(mask, batch.labels, np.int32(-100))
  poisoned = (poison(batch.student), poison(batch.teacher), junk, batch.mask)
  (again, others), poisoned_gradient = step(poisoned, at(0.4))
  assert again == loss
  jax.tree.map(np.testing.assert_array_equal, others, (metrics, state))
  np.testing.assert_array_equal(poisoned_gradient, gradient)
  np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0)
  nothing = (*poisoned[:3], np.zeros_like(mask))
  (zero, (_, same)), gradient = step(nothing, at(0.4))
  assert zero == 0
  np.testing.assert_array_equal(gradient, 0)
  jax.tree.map(np.testing.assert_array_equal, same, at(0.4))


def test_jit_vmap_leading_axes_and_metrics(batch):
  step = compiled(ce_weight=0.3)
  (loss, (metrics, state)), _ = step(batch, at(0.4))
  eager, (eager_metrics, eager_state) = taid_loss(*batch, state=at(0.4), elapsed=0.3, ce_weight=0.3)
  np.testing.assert_allclose(eager, loss, rtol=1e-6)
  for ours, theirs in ((metrics, eager_metrics), (state._asdict(), eager_state._asdict())):
    for name, value in ours.items():
      np.testing.assert_allclose(value, theirs[name], rtol=1e-6, err_msg=name)
  parts = metrics["distillation_loss"] + 0.3 * metrics["cross_entropy"]
  np.testing.assert_allclose(parts, loss, rtol=1e-6)
  np.testing.assert_allclose(metrics["interpolation"], 0.4, rtol=1e-6)
  np.testing.assert_allclose(state.previous_loss, metrics["distillation_loss"], rtol=1e-6)
  flat = tuple(x.reshape(24, *x.shape[2:]) for x in batch)
  np.testing.assert_allclose(step(flat, at(0.4))[0][0], loss, rtol=1e-6)
  stacked = tuple(jnp.stack([x, x[::-1]]) for x in batch)
  both = jax.jit(jax.vmap(lambda *b: loss_at(0.4, *b, ce_weight=0.3)))(*stacked)
  np.testing.assert_allclose(both, [loss, loss], rtol=1e-6)


def test_gradient_reaches_the_student_only(batch):
  def function(student, teacher, state, elapsed):
    loss, (metrics, state) = taid_loss(
      student, teacher, *batch[2:], state=state, elapsed=elapsed, temperature=2.0
    )
    return loss, (metrics, state)

  gradients, _ = jax.jit(jax.grad(function, argnums=(0, 1, 2, 3), has_aux=True))(
    batch.student, batch.teacher, at(0.4), 0.3
  )
  assert bool(jnp.any(gradients[0] != 0))
  for gradient in jax.tree.leaves(gradients[1:]):
    np.testing.assert_array_equal(gradient, 0)
  to_rest = jax.jit(
    jax.grad(lambda z: sum(jax.tree.leaves(function(z, batch.teacher, at(0.4), 0.3)[1])))
  )
  np.testing.assert_array_equal(to_rest(batch.student), 0)


def numpy_schedule(loss_sequence, elapsed, options):
  t, momentum, previous, shares = options.start, 0.0, None, []
  for loss, done in zip(loss_sequence, elapsed, strict=True):
    linear = options.start + (options.end - options.start) * done
    rise = 0.0
    if previous is not None:
      change = (previous - loss) / (previous + 1e-15)
      momentum = options.momentum * momentum + (1 - options.momentum) * change
      rise = options.rate / (1 + np.exp(-momentum)) * (1 - t)
    t, previous = min(options.end, max(linear, t + rise)), loss
    shares.append(t)
  return shares


@pytest.mark.parametrize(
  "options",
  [
    Interpolation(),
    Interpolation(start=0.2, end=0.9, rate=0.3, momentum=0.5),
    Interpolation(rate=0.0),
    Interpolation(start=0.7, end=0.7),
  ],
)
def test_schedule(options):
  loss_sequence = 2 * np.random.default_rng(0).random(40) * np.linspace(1, 0.2, 40)
  elapsed = np.arange(40) / 40
  step = jax.jit(functools.partial(update_interpolation, interpolation=options))
  state, shares = InterpolationState.init(options), []
  for loss, done in zip(loss_sequence, elapsed, strict=True):
    state = step(state, loss, elapsed=done)
    shares.append(float(state.share))
  np.testing.assert_allclose(shares, numpy_schedule(loss_sequence, elapsed, options), rtol=2e-6)
  assert np.all(np.diff([options.start, *shares]) >= -1e-7)
  assert max(shares) <= float(jnp.float32(options.end))
  assert {leaf.dtype for leaf in state} == {jnp.dtype("float32")}


def test_the_schedule_rises_faster_while_the_loss_falls():
  options = Interpolation(start=0.0, rate=0.1, momentum=0.5)
  shares = []
  for factor in (0.5, 1.0, 2.0):
    state = InterpolationState.init(options)
    for i in range(6):
      state = update_interpolation(state, factor**i, elapsed=0.0, interpolation=options)
    shares.append(float(state.share))
  assert shares[0] > shares[1] > shares[2] > 0


def test_running_form_is_the_in_batch_form(batch, rows, context):
  method = make_taid(ce_weight=0.1, temperature=1.5)
  now = with_own(context, at(0.6))
  loss, stats = jax.jit(lambda c: method.loss.function(*rows, {}, c))(now)
  mask = batch.mask.reshape(24)
  (expected, (metrics, state)), _ = compiled(ce_weight=0.1, temperature=1.5)(batch, at(0.6))
  np.testing.assert_allclose(losses.masked_mean(loss, mask), expected, rtol=1e-6)
  new = method.update(context.state._replace(method=at(0.6)), stats, mask, jnp.float32(0.3))
  for ours, theirs in zip(new.method, state, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  np.testing.assert_allclose(method.metrics(new)["interpolation"], state.share, rtol=1e-6)
  np.testing.assert_array_equal(stats["temperature"], 1.5)
  np.testing.assert_array_equal(stats["weight"], 1)
  np.testing.assert_array_equal(stats["hard"], 0)
  parts = stats["distillation_loss"] + 0.1 * stats["cross_entropy"]
  np.testing.assert_allclose(loss, parts, rtol=1e-6)
  assert metrics["weight_mean"] == 1


def test_state_of_the_running_form(batch, rows, context):
  options = Interpolation(start=0.2, rate=0.1, momentum=0.5)
  method = make_taid(interpolation=options, half_life=100.0)
  state = method.init_state()
  np.testing.assert_allclose(state.method.share, 0.2)
  mask, elapsed = batch.mask.reshape(24), jnp.float32(0.1)
  step = jax.jit(lambda c: method.loss.function(*rows, {}, c))
  for _ in range(2):
    _, stats = step(context._replace(state=state))
    state = method.update(state, stats, mask, elapsed)
  expected = method.init_state().entropy
  for _ in range(2):
    expected = expected.update(stats["teacher_entropy"], mask, half_life=100.0)
  np.testing.assert_array_equal(state.entropy.mass, expected.mass)
  assert float(state.method.share) > 0.2
  empty = method.update(state, stats, jnp.zeros_like(mask), jnp.float32(0.9))
  jax.tree.map(np.testing.assert_array_equal, empty, state)
  poisoned = {name: jnp.where(mask, stat, jnp.nan) for name, stat in stats.items()}
  jax.tree.map(
    np.testing.assert_array_equal,
    method.update(state, poisoned, mask, elapsed),
    method.update(state, stats, mask, elapsed),
  )
  # The order in which micro-batches bring the tokens is nothing to the schedule.
  order = np.arange(24).reshape(-1, 4).T.reshape(-1)
  split = {name: stat[order] for name, stat in stats.items()}
  for ours, theirs in zip(
    jax.tree.leaves(method.update(state, split, mask[order], elapsed)),
    jax.tree.leaves(method.update(state, stats, mask, elapsed)),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  observed = method.observe(state, stats, mask)
  assert observed.method is state.method


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Interpolation(start=-0.1), r"0 <= start <= end <= 1 must hold, got start -0.1"),
    (lambda: Interpolation(start=0.8, end=0.5), "got start 0.8, end 0.5"),
    (lambda: Interpolation(end=1.1), "end 1.1"),
    (lambda: Interpolation(rate=-1.0), r"rate must be in \[0, 1\], got -1.0"),
    (lambda: Interpolation(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
    (lambda: make_taid(temperature=0.0), "temperature must be a positive temperature, got 0.0"),
    (lambda: make_taid(ce_weight=-1.0), "ce_weight must be >= 0"),
    (lambda: make_taid(half_life=0.0), "half_life must be a positive number"),
    (lambda: loss_at(0.4, Z_STUDENT, Z_TEACHER, ONE_LABEL, ONE, temperature=-1.0), "temperature"),
    (lambda: loss_at(0.4, Z_STUDENT, Z_TEACHER[:, :3], ONE_LABEL, ONE), "must have the same shape"),
    (lambda: loss_at(0.4, Z_STUDENT, Z_TEACHER, ONE_LABEL, ONE[0]), "mask must have shape"),
  ],
)
def test_misuse(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_momentum_weighs_the_past():
  state = InterpolationState.init()
  for loss, expected in ((1.0, 0.0), (0.5, 0.1 * 0.5), (0.25, 0.9 * 0.05 + 0.1 * 0.5)):
    state = update_interpolation(
      state, loss, elapsed=0.0, interpolation=Interpolation(momentum=0.9)
    )
    np.testing.assert_allclose(state.momentum, expected, rtol=1e-6)


def test_no_gradient_passes_the_schedule():
  def share(loss):
    return update_interpolation(at(0.4), loss, elapsed=0.0, interpolation=Interpolation()).share

  assert jax.grad(share)(1.0) == 0


def test_a_loss_that_is_not_finite_or_zero_moves_no_mountains(batch):
  _, (_, state) = taid_loss(*batch, state=at(0.4), elapsed=0.0)
  broken = batch.student.at[0].set(jnp.nan)
  _, (_, after) = taid_loss(broken, *batch[1:], state=state, elapsed=0.5)
  jax.tree.map(np.testing.assert_array_equal, after, state)
  zero = state._replace(previous_loss=jnp.float32(0))
  for _ in range(3):
    zero = update_interpolation(zero, 1.0, elapsed=0.0, interpolation=Interpolation())
  assert bool(jnp.isfinite(zero.momentum))
  assert abs(float(zero.momentum)) <= 0.01 / 1e-6
  with pytest.raises(TypeError, match=r"state must be a InterpolationState, got 0\.4"):
    taid_loss(*batch, state=0.4, elapsed=0.0)
  with pytest.raises(ValueError, match="elapsed must be a scalar"):
    taid_loss(*batch, state=state, elapsed=jnp.zeros(3))


def test_the_share_among_the_metrics_is_detached(batch):
  def interpolation(share):
    _, (metrics, _) = taid_loss(*batch, state=at(share), elapsed=0.3)
    return metrics["interpolation"]

  value, gradient = jax.jit(jax.value_and_grad(interpolation))(jnp.float32(0.4))
  assert value == jnp.float32(0.4)
  assert gradient == 0
