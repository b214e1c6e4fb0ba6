"""The running form of AdaKD: against the in-batch form, and what its state does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import methods
from egad_jax.losses.focus import Focus, update_focus
from egad_jax.methods.adakd import make_adakd
from tests.losses.adakd_cases import CODE, FIXED, OFF, OPTIONS, at, compiled, filled_context


@pytest.fixture
def rows(batch):
  return batch.student.reshape(24, 11), batch.teacher.reshape(24, 11), batch.labels.reshape(24)


def test_golden_temperatures_of_the_running_form(rows):
  method = make_adakd()
  context = methods.Context(method.init_state(), jnp.float32(0), jnp.float32(0))
  step = jax.jit(lambda c: method.loss.function(*rows, {}, c)[1])
  np.testing.assert_array_equal(step(context)["temperature"], 1)  # Nothing to compare with yet.
  same = {"teacher_entropy": np.ones(9, np.float32), "difficulty": np.full(9, 0.2, np.float32)}
  state = jax.jit(method.observe)(context.state, same, np.ones(9, bool))
  stats = step(context._replace(state=state))
  median = float(jax.jit(lambda d: d.quantile(0.5))(state.method.difficulty))
  np.testing.assert_allclose(median, 0.2, rtol=0.07)  # A bin is 6.7 % wide.
  expected = np.exp(-0.5 * np.tanh(np.log(np.array(stats["difficulty"]) / median)))
  np.testing.assert_allclose(stats["temperature"], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def many():
  """2,000 tokens whose difficulties spread over [0, 1], all of them valid."""
  rng = np.random.default_rng(3)
  teacher = 3 * rng.normal(size=(2000, 11))
  student = teacher + np.exp(rng.uniform(-4.0, 1.5, size=(2000, 1))) * rng.normal(size=(2000, 11))
  labels = rng.integers(0, 11, size=2000, dtype=np.int32)
  return student.astype(np.float32), teacher.astype(np.float32), labels, np.ones(2000, bool)


@pytest.mark.parametrize("name", ["code", "everything"])
def test_running_form_is_the_in_batch_form(many, name):
  options = dict(OPTIONS[name])
  options["divergence_options"] = dict(options.get("divergence_options", ()))
  method = make_adakd(**options)
  context, _ = filled_context(method, many, 0.4)
  running = jax.jit(lambda c: method.loss.function(*many[:3], {}, c))
  update = jax.jit(method.update)
  for ratio in (0.15, 0.4, 1.0):
    own = context.state.method._replace(focus=at(ratio))
    now = context._replace(state=context.state._replace(method=own))
    loss, stats = jax.tree.map(np.asarray, running(now))
    (expected, (metrics, state)), _ = compiled(**OPTIONS[name])(many, at(ratio))
    # Inside a bin of 6.7 % tokens count as evenly spread, so selection errs by part of a bin's
    # tokens, and so does the median.
    tolerance = 0.01
    np.testing.assert_allclose(loss.mean(), expected, rtol=tolerance)
    np.testing.assert_allclose(stats["hard"].mean(), metrics["hard_fraction"], atol=tolerance)
    np.testing.assert_allclose(stats["weight"].mean(), 1, rtol=0.05)
    np.testing.assert_allclose(
      stats["temperature"].mean(), metrics["temperature_mean"], rtol=tolerance
    )
    new = update(now.state, stats, many[3], jnp.float32(0.3))
    np.testing.assert_allclose(new.method.focus, state, rtol=tolerance)
    assert method.metrics(new)["focus_ratio"] == new.method.focus.ratio


def test_selection_follows_the_position_and_is_nested(many):
  method = make_adakd(temperature=FIXED)
  context, stats = filled_context(method, many, 1.0)
  place = jax.jit(lambda d, difficulty: d.position(difficulty))
  position = np.asarray(place(context.state.method.difficulty, stats["difficulty"]))
  step = jax.jit(lambda c: method.loss.function(*many[:3], {}, c))
  previous = np.zeros(2000)
  for ratio in (0.1, 0.3, 0.7, 1.0):
    own = context.state.method._replace(focus=at(ratio))
    now = context._replace(state=context.state._replace(method=own))
    loss, stats = jax.tree.map(np.asarray, step(now))
    hard = stats["hard"]
    whole = (hard == 0) | (hard == 1)  # Only the bin that straddles the cut is kept in part.
    assert not (~whole).any() or np.ptp(position[~whole]) < 0.02
    np.testing.assert_array_equal(hard[whole], (position >= 1 - np.float32(ratio))[whole])
    np.testing.assert_allclose(hard.mean(), ratio, rtol=1e-4)
    np.testing.assert_allclose(stats["weight"], hard / ratio, rtol=1e-6)
    np.testing.assert_array_equal(loss[hard == 0], 0)
    assert np.all(hard >= previous)
    previous = hard
  np.testing.assert_array_equal(previous, 1)


def test_state_of_the_running_form(rows, batch):
  method = make_adakd(half_life=100.0, **CODE)
  mask, elapsed = np.reshape(batch.mask, 24), jnp.float32(0.3)
  context, stats = filled_context(method, (*rows, mask), 0.6)
  state = context.state
  loss, stats = method.loss.function(*rows, {}, context)
  jitted, _ = jax.jit(lambda c: method.loss.function(*rows, {}, c))(context)
  np.testing.assert_allclose(jitted, loss, rtol=1e-5, atol=1e-7)
  update = jax.jit(method.update)
  new = update(state, stats, mask, elapsed)
  for name, ours in (("entropy", new.entropy), ("difficulty", new.method.difficulty)):
    before = state.entropy if name == "entropy" else state.method.difficulty
    key = {"entropy": "teacher_entropy"}.get(name, name)
    np.testing.assert_array_equal(ours.mass, before.update(stats[key], mask, half_life=100.0).mass)
  selected = np.array(mask) & (np.array(stats["hard"]) > 0)
  assert 0 < selected.sum() < mask.sum()
  value = 0.6 * np.array(stats["distillation_loss"])  # Without 1 / r, so times the kept share.
  mean = value[selected].sum() / np.array(stats["hard"])[selected].sum()
  by_hand = update_focus(state.method.focus, mean, elapsed=elapsed, focus=CODE["focus"])
  np.testing.assert_allclose(new.method.focus, by_hand, rtol=1e-6)
  np.testing.assert_array_equal(loss, stats["distillation_loss"])

  observed = method.observe(state, stats, mask)
  jax.tree.map(np.testing.assert_array_equal, observed.method.difficulty, new.method.difficulty)
  assert observed.method.focus is state.method.focus
  empty = update(new, stats, np.zeros_like(mask), elapsed)
  jax.tree.map(np.testing.assert_array_equal, empty, new)
  poisoned = {name: np.where(mask, stat, np.float32(np.nan)) for name, stat in stats.items()}
  jax.tree.map(np.testing.assert_array_equal, update(state, poisoned, mask, elapsed), new)
  # Tokens without one that is selected leave the controller, and only it, as it was.
  easy = update(state, stats, mask & (np.asarray(stats["hard"]) == 0), elapsed)
  jax.tree.map(np.testing.assert_array_equal, easy.method.focus, state.method.focus)
  assert not np.array_equal(easy.method.difficulty.mass, state.method.difficulty.mass)


def test_micro_batches_are_nothing_to_the_controller(rows, batch):
  """The train step gathers the stats of all micro-batches, in their order, and updates once."""
  method, accumulation = make_adakd(), 4
  mask, elapsed = batch.mask.reshape(24), jnp.float32(0.3)
  context, _ = filled_context(method, (*rows, mask), 0.6)
  stats = jax.jit(lambda c: method.loss.function(*rows, {}, c)[1])(context)
  update = jax.jit(method.update)
  whole = update(context.state, stats, mask, elapsed)
  step = jax.jit(lambda *r: method.loss.function(*r, {}, context)[1])
  parts = [step(*(row[i::accumulation] for row in rows)) for i in range(accumulation)]
  gathered = {name: np.stack([part[name] for part in parts]) for name in stats}
  masks = np.stack([mask[i::accumulation] for i in range(accumulation)])
  split = update(context.state, gathered, masks, elapsed)
  np.testing.assert_array_equal(split.method.difficulty.mass, whole.method.difficulty.mass)
  np.testing.assert_allclose(split.method.focus, whole.method.focus, rtol=1e-6)


def test_controller_over_a_training():
  """A loss that falls and then rises: the share shrinks after the warm-up, and grows again."""
  method = make_adakd(focus=Focus(decay=0.0))
  state = method.init_state()
  teacher, away = np.random.default_rng(0).normal(size=(2, 64, 11)).astype(np.float32)
  teacher = 3 * teacher
  labels, mask = np.zeros(64, np.int32), np.ones(64, bool)

  @jax.jit
  def step(state, distance, elapsed):
    context = methods.Context(state, jnp.float32(0), elapsed)
    _, stats = method.loss.function(teacher + distance * away, teacher, labels, {}, context)
    return method.update(state, stats, mask, elapsed)

  ratios = []
  for i, distance in enumerate([1.0] * 3 + list(np.linspace(1, 0.2, 18)) + [1.5] * 19):
    state = step(state, jnp.float32(distance), jnp.float32(i / 40))
    ratios.append(float(method.metrics(state)["focus_ratio"]))
  assert set(ratios[:3]) == {1.0}
  assert min(ratios) < 0.7
  assert ratios.index(min(ratios)) > 12
  assert ratios[-1] > min(ratios)


def test_what_is_off_is_not_in_the_program(rows):
  def names(**options):
    method = make_adakd(**options)
    context = methods.Context(method.init_state(), jnp.float32(0), jnp.float32(0))
    return str(jax.make_jaxpr(lambda c, *r: method.loss.function(*r, {}, c))(context, *rows))

  for name in ("cumsum", "gather", "sort", "clamp"):
    assert name not in names(**OFF)
  assert "cumsum" in names(temperature=FIXED)
  assert "cumsum" in names(focus=Focus(ratio_step=0.0))


@pytest.mark.parametrize("difficulty", [0.2, 0.0])
def test_tokens_that_are_all_alike_keep_the_expected_share(rows, difficulty):
  """All in one bin, or in the atom at 0: a threshold would select none and never move again."""
  method = make_adakd()
  state = method.init_state()
  difficulties = np.full(99, difficulty, np.float32)
  same = {"teacher_entropy": np.ones(99, np.float32), "difficulty": difficulties}
  state = jax.jit(method.observe)(state, same, np.ones(99, bool))
  state = state._replace(method=state.method._replace(focus=at(0.3)))
  context = methods.Context(state, jnp.float32(0), jnp.float32(0.5))
  teacher = rows[1]
  if difficulty:  # Two words whose distance is in that bin.
    q = (1 - difficulty**2) ** 2
    student = np.array([[np.log(q), np.log1p(-q)]], np.float32)
    teacher = np.array([[0.0, -800.0]], np.float32)
  else:
    student = teacher
  labels = np.zeros(len(student), np.int32)
  _, stats = jax.jit(method.loss.function)(student, teacher, labels, {}, context)
  np.testing.assert_allclose(stats["hard"], 0.3, rtol=1e-5)
  np.testing.assert_allclose(stats["weight"], 1, rtol=1e-5)
  after = jax.jit(method.update)(state, stats, np.ones(len(student), bool), jnp.float32(0.5))
  assert not np.array_equal(after.method.focus.ema_loss, state.method.focus.ema_loss)


def test_a_loss_that_is_not_finite_leaves_the_controller(rows):
  method = make_adakd()
  context = methods.Context(method.init_state(), jnp.float32(0), jnp.float32(0.5))
  _, stats = method.loss.function(*rows, {}, context)
  broken = stats | {"distillation_loss": stats["distillation_loss"].at[3].set(jnp.nan)}
  after = method.update(context.state, broken, jnp.ones(24, bool), jnp.float32(0.5))
  jax.tree.map(np.testing.assert_array_equal, after.method.focus, context.state.method.focus)
