"""Steps that are not finite, or spike: withheld, counted, and the same again after a restart."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egad_jax.data.batches import Batch
from egad_jax.head import distillation_head
from egad_jax.methods.egad import make_vanilla_kd
from egad_jax.methods.method import Context
from egad_jax.models.model import make_model
from egad_jax.teachers import ColocatedTeacher
from egad_jax.training.guard import STD_FLOOR, WARM_UP, Guard, Spikes
from egad_jax.training.objective import Outcome, make_objective
from egad_jax.training.optimizers import position_in_run, scale_by_step
from egad_jax.training.state import TrainState
from egad_jax.training.step import make_train_step
from tests.training import step_test
from tests.training.step_test import FAST_COMPILE, assert_same_bits, mean

ROWS, SEQ = 4, 3
SPIKES = Spikes(sigmas=6.0, half_life=30.0)
METHOD = make_vanilla_kd()
SCHEDULE = optax.linear_schedule(0.1, 0.0, 1000)
TX = optax.chain(optax.scale_by_adam(), scale_by_step(SCHEDULE))
STATS = ("distillation_loss", "cross_entropy", "teacher_entropy", "student_entropy")
STATS += ("temperature", "weight", "hard")
# What a batch does to the step below; `slope` moves the gradient of w alone, `root` breaks that of
# v alone, and neither moves the loss.
CLEAN = {"scale": 1.0, "slope": 0.0, "root": 1.0}


def objective(params, knobs, batch, context):
  """A least-squares loss whose value and gradients `knobs` can break one by one."""
  del context
  w, v = params["student"]["w"], params["student"]["v"]
  x = batch.tokens.astype(jnp.float32) / 10
  errors = knobs["scale"] * ((w[0] * x + w[1] - jnp.sin(x)) ** 2 + jnp.sum(v**2))
  tilt = knobs["slope"] * jnp.sum(w)
  # Its value is 0 and its gradient NaN at root = 0.
  corner = jnp.sqrt(knobs["root"] * jnp.sum(v**2)) - jnp.sqrt(knobs["root"] * jnp.sum(v**2))
  loss = jnp.sum(errors, where=batch.mask) + tilt - jax.lax.stop_gradient(tilt) + corner
  return loss, Outcome(loss, dict.fromkeys(STATS, errors), {}, batch.mask)


def make_step(method=METHOD, context=None, **options):
  return jax.jit(
    make_train_step(
      objective=objective,
      method=method,
      tx=TX,
      learning_rate=SCHEDULE,
      context=context or (lambda step, state: Context(state, jnp.float32(0.5), step / 100)),
      **options,
    ),
    compiler_options=FAST_COMPILE,
  )


def initial_state() -> TrainState:
  params = {"student": {"w": jnp.array([2.0, -1.0]), "v": jnp.array([0.5, 0.3])}, "method": {}}
  return TrainState(jnp.int32(0), params, TX.init(params), METHOD.init_state(), Guard.init())


def batch_of(i: int) -> Batch:
  tokens = np.random.default_rng(i).integers(0, 30, (ROWS, SEQ)).astype(np.int32)
  return Batch(tokens, tokens, tokens, np.ones_like(tokens), np.ones(tokens.shape, bool))


def train(step, state, steps, knobs=None, start=0):
  """States and metrics after each step; `knobs` {step: {name: value}} breaks some."""
  history = []
  for i in range(start, start + steps):
    state, metrics = step(state, CLEAN | (knobs or {}).get(i, {}), batch_of(i))
    history.append((state, metrics))
  return history


def skipped(history):
  return [i for i, (_, metrics) in enumerate(history) if mean(metrics, "skipped")]


@pytest.fixture(scope="module")
def plain():
  return make_step()


@pytest.fixture(scope="module")
def guarded():
  return make_step(spikes=SPIKES)


@pytest.fixture(scope="module")
def smooth(guarded):
  history = train(guarded, initial_state(), WARM_UP + 15)
  assert skipped(history) == []
  return history


@pytest.mark.parametrize(
  "knobs",
  [
    {"scale": np.nan},
    {"scale": np.inf},
    # Finite loss: one gradient leaf is NaN, or the squares of finite gradients overflow.
    {"root": 0.0},
    {"slope": 1e25},
  ],
)
@pytest.mark.parametrize("name", ["plain", "guarded"])
def test_a_step_that_is_not_finite_leaves_all_but_the_counts(knobs, name, request):
  step = request.getfixturevalue(name)
  (before, _), (after, metrics), (later, next_metrics) = train(
    step, initial_state(), 3, knobs={1: knobs}
  )
  assert np.isfinite(mean(metrics, "loss")) == ("scale" not in knobs)
  assert not np.isfinite(mean(metrics, "grad_norm"))
  assert (mean(metrics, "finite"), mean(metrics, "skipped")) == (0, 1)
  assert mean(metrics, "skipped_total") == mean(metrics, "skipped_in_a_row") == 1
  counts = {"skipped": before.guard.skipped + 1, "skipped_in_a_row": jnp.int32(1)}
  expected = before._replace(step=jnp.int32(2), guard=before.guard._replace(**counts))
  assert_same_bits(after, expected)
  assert (mean(next_metrics, "skipped"), mean(next_metrics, "skipped_in_a_row")) == (0, 0)
  assert mean(next_metrics, "skipped_total") == 1
  for new, old in zip(
    jax.tree.leaves(later.trainable), jax.tree.leaves(after.trainable), strict=True
  ):
    assert np.isfinite(new).all()
    assert (new != old).all()


def test_skipped_steps_in_a_row_are_counted(plain):
  broken = {i: {"scale": np.nan} for i in (2, 3, 4, 6)}
  history = train(plain, initial_state(), 8, knobs=broken)
  assert [mean(m, "skipped_in_a_row") for _, m in history] == [0, 0, 1, 2, 3, 0, 1, 0]
  assert [mean(m, "skipped_total") for _, m in history] == [0, 0, 1, 2, 3, 3, 4, 4]
  assert [int(state.guard.skipped) for state, _ in history] == [0, 0, 1, 2, 3, 3, 4, 4]


def test_a_skipped_step_takes_its_learning_rate_with_it(plain):
  """The schedule goes by the steps, Adam's corrections by the updates made."""
  history = train(plain, initial_state(), 4, knobs={1: {"scale": np.nan}})
  rates = [mean(metrics, "learning_rate") for _, metrics in history]
  np.testing.assert_allclose(rates, [SCHEDULE(n) for n in (0, 1, 2, 3)], rtol=1e-6)
  (before, _), (after, _) = history[1:3]
  assert int(after.opt_state[0].count) == 2
  adam, correct = after.opt_state[0], optax.tree.bias_correction
  first, second = correct(adam.mu, 0.9, 2), correct(adam.nu, 0.999, 2)
  jax.tree.map(
    lambda old, new, m, v: np.testing.assert_allclose(
      new - old, -SCHEDULE(2) * m / (np.sqrt(v) + 1e-8), rtol=1e-4
    ),
    before.trainable,
    after.trainable,
    first,
    second,
  )


def test_a_method_decides_for_the_step_that_follows():
  """So a schedule kept in a method's state ends at the last step, not one after it."""
  method = METHOD._replace(
    update=lambda state, stats, mask, elapsed: state._replace(method=elapsed)
  )
  used = []

  def context(step, state):
    return Context(state, jnp.float32(0.5), position_in_run(step, 4))

  step, state = make_step(method, context), initial_state()
  state = state._replace(method_state=state.method_state._replace(method=jnp.float32(0)))
  for i in range(4):
    used.append(float(state.method_state.method))
    state, _ = step(state, CLEAN, batch_of(i))
  np.testing.assert_allclose(used, [0, 1 / 3, 2 / 3, 1], rtol=1e-6)


@pytest.mark.parametrize("knobs", [{"slope": 1e3}, {"scale": 1e3}])
def test_a_spike_is_skipped_and_does_not_move_what_it_is_judged_by(knobs, guarded, smooth):
  state, _ = smooth[-1]
  after, metrics = guarded(state, CLEAN | knobs, batch_of(99))
  assert (mean(metrics, "finite"), mean(metrics, "skipped")) == (1, 1)
  assert mean(metrics, "grad_norm") > mean(metrics, "grad_norm_limit")
  # The loss is none in the first case: it is enough that one of the two is.
  assert (mean(metrics, "loss") > mean(metrics, "loss_limit")) == ("scale" in knobs)
  counts = {"skipped": jnp.int32(1), "skipped_in_a_row": jnp.int32(1)}
  expected = state._replace(step=state.step + 1, guard=state.guard._replace(**counts))
  assert_same_bits(after, expected)
  _, metrics = guarded(after, CLEAN, batch_of(99))
  assert mean(metrics, "skipped") == 0


def test_no_finite_step_is_a_spike_by_default_or_before_the_warm_up(plain, guarded):
  jump = {"slope": 1e3}
  assert skipped(train(plain, initial_state(), WARM_UP + 2, knobs={WARM_UP: jump})) == []
  assert skipped(train(guarded, initial_state(), WARM_UP, knobs={WARM_UP - 1: jump})) == []
  assert skipped(train(guarded, initial_state(), WARM_UP + 1, knobs={WARM_UP: jump})) == [WARM_UP]


def test_mean_and_variance_are_exponentially_weighted_from_the_first_step_on():
  values = np.random.default_rng(0).normal(5.0, 2.0, (60, 2)).astype(np.float32)
  guard, update = Guard.init(), jax.jit(Guard.update, static_argnums=4)
  for n, value in enumerate(values, 1):
    guard = update(guard, True, value, 8, SPIKES)
    weights = 2.0 ** (-np.arange(n)[::-1] / SPIKES.half_life)
    average = np.average(values[:n], axis=0, weights=weights)
    variance = np.average((values[:n] - average) ** 2, axis=0, weights=weights)
    np.testing.assert_allclose(guard.mean, average, rtol=1e-5)
    np.testing.assert_allclose(guard.variance, variance, rtol=1e-4, atol=1e-5)
  std = np.sqrt(guard.variance)
  np.testing.assert_allclose(guard.limits(SPIKES), guard.mean + 6 * std, rtol=1e-6)


@pytest.mark.parametrize("half_life", [0.5, 1e9])
def test_extreme_half_lives_and_values_stay_finite(half_life):
  spikes, guard = Spikes(6.0, half_life), Guard.init()
  for value in (3e38, 1.8e19, 0.0, 2.0, 2.0, 2.0):
    guard = guard.update(jnp.bool_(True), jnp.float32([value, value]), 8, spikes)
    assert np.isfinite(guard.mean).all()
    assert np.isfinite(guard.variance).all()
    assert (guard.variance >= 0).all()


def test_a_flat_curve_has_room_above_it():
  guard = Guard.init()._replace(accepted=jnp.int32(WARM_UP), mean=jnp.float32([2.0, 0.5]))
  np.testing.assert_allclose(guard.limits(SPIKES), guard.mean * (1 + 6 * STD_FLOOR), rtol=1e-6)
  assert guard.judge(guard.mean * 1.2, SPIKES).accepted
  assert not guard.judge(guard.mean * jnp.array([1.0, 1.4]), SPIKES).accepted


def test_an_empty_batch_is_accepted_and_moves_nothing(guarded, smooth):
  state, _ = smooth[-1]
  empty = jax.tree.map(np.zeros_like, batch_of(0))
  after, metrics = guarded(state, CLEAN, empty)
  assert mean(metrics, "skipped") == 0
  assert_same_bits(after.guard, state.guard)


def test_a_step_is_judged_by_its_loss_per_token_and_gradient_norm(smooth):
  state, metrics = smooth[0]
  expected = [mean(metrics, "loss"), mean(metrics, "grad_norm")]
  np.testing.assert_allclose(state.guard.mean, expected, rtol=1e-6)


def test_a_restart_changes_no_bit_across_skipped_steps(guarded):
  knobs = {3: {"scale": np.nan}, 24: {"slope": 1e3}, 26: {"scale": 1e3}, 27: {"root": 0.0}}
  whole = train(guarded, initial_state(), 40, knobs=knobs)
  assert skipped(whole) == list(knobs)
  for cut in (4, 26, 27):
    # What a checkpoint holds: arrays on the host.
    saved = jax.device_get(whole[cut - 1][0])
    again = train(guarded, jax.tree.map(jnp.asarray, saved), 40 - cut, knobs=knobs, start=cut)
    assert_same_bits(again, whole[cut:])


def test_accumulation_changes_no_verdict():
  knobs = {2: {"scale": np.nan}, 22: {"slope": 1e3}}
  step = make_step(spikes=SPIKES, accumulation=2)
  assert skipped(train(step, initial_state(), 24, knobs=knobs)) == [2, 22]


def test_accepted_steps_are_those_of_a_step_without_a_guard(plain, guarded):
  # Without the compiler's contractions, which differ from program to program.
  @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
  def reference(state, knobs, batch):
    context = Context(state.method_state, jnp.float32(0.5), state.step / 100)
    grads, outcome = jax.grad(objective, has_aux=True)(state.trainable, knobs, batch, context)
    count = jnp.maximum(jnp.sum(outcome.mask, dtype=jnp.float32), 1)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = TX.update(grads, state.opt_state, state.trainable, step=state.step)
    moved = METHOD.update(state.method_state, outcome.stats, outcome.mask, context.elapsed)
    new = (optax.apply_updates(state.trainable, updates), opt_state, moved)
    old = (state.trainable, state.opt_state, state.method_state)
    finite = jnp.isfinite(outcome.loss) & jnp.isfinite(optax.tree.norm(grads))
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    return TrainState(state.step, *kept, state.guard), outcome.loss

  state = initial_state()
  histories = [train(step, state, 30) for step in (plain, guarded)]
  for i, ((by_plain, metrics), (by_guarded, _)) in enumerate(zip(*histories, strict=True)):
    state, loss = reference(state._replace(step=jnp.int32(i)), CLEAN, batch_of(i))
    assert float(metrics["loss"][0]) == float(loss)
    for actual in (by_plain, by_guarded):
      assert_same_bits(actual._replace(step=state.step, guard=state.guard), state)


@pytest.mark.slow
def test_training_a_real_pair_has_no_spike():
  """Fifty steps that learn, each on other rows: the noise of batches is none."""
  steps = 50
  tx = optax.adam(3e-3)
  pair = make_objective(
    student=make_model(step_test.STUDENT),
    teacher=ColocatedTeacher(make_model(step_test.TEACHER), None),
    method=METHOD,
    make_head=lambda loss: distillation_head(loss.function, chunk_size=8),
  )
  step = jax.jit(
    make_train_step(
      objective=pair,
      method=METHOD,
      tx=tx,
      learning_rate=optax.constant_schedule(3e-3),
      context=lambda step, state: Context(state, jnp.float32(0.5), jnp.float32(0.5)),
      spikes=Spikes(6.0, 20.0),
    ),
    compiler_options=FAST_COMPILE,
  )
  state = step_test.initial_state(METHOD)
  state = state._replace(opt_state=tx.init(state.trainable))
  frozen, losses = step_test.frozen(), []
  for i in range(steps):
    state, metrics = step(state, frozen, step_test.packed_batch(i))
    losses.append(mean(metrics, "loss"))
  assert int(state.guard.skipped) == 0
  assert int(state.guard.accepted) == steps
  assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
