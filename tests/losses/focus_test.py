"""AdaKD's ratio controller and its exact selection, against hand-computed sequences and NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses.focus import (
  Focus,
  FocusState,
  select_hardest,
  update_focus,
)

AFTER_WARM_UP = 0.5
PLAIN = Focus(decay=0.0)  # The running loss is the loss itself.


def run(losses, *, focus, state=None, elapsed=AFTER_WARM_UP):
  state = FocusState.init() if state is None else state
  states = []
  for loss in losses:
    state = update_focus(state, loss, elapsed=elapsed, focus=focus)
    states.append(state)
  return states


def test_golden_sequence():
  start = FocusState(jnp.float32(1), jnp.float32(1), jnp.float32(1))
  states = run([0.97, 0.94, 0.92, 0.89, 0.95, 1.1, 1.2, 1.3], focus=PLAIN, state=start)
  ratios = [float(state.ratio) for state in states]
  np.testing.assert_allclose(
    ratios, [1, 0.95, 0.95, 0.9025, 0.947625, 0.995006, 1, 1], atol=5e-7, rtol=0
  )
  references = [float(state.reference_loss) for state in states]
  np.testing.assert_allclose(references, [1, 0.94, 0.94, 0.89, 0.95, 1.1, 1.2, 1.3], rtol=1e-6)


def test_running_loss_starts_at_the_first_loss():
  states = run([3.0, 1.0, 2.0], focus=Focus(decay=0.75, tolerance=0.9))
  np.testing.assert_allclose([float(s.ema_loss) for s in states], [3.0, 2.5, 2.375], rtol=1e-6)
  assert float(states[0].reference_loss) == 3.0
  assert float(states[2].reference_loss) == 3.0


def test_warm_up_takes_all_tokens_and_ends_with_the_reference():
  focus = Focus(decay=0.0, warmup=0.2)
  state, steps = FocusState.init(), 10
  for step, loss in enumerate([8.0, 4.0, 2.0]):  # Elapsed 0, .1 and .2: the whole warm-up.
    state = update_focus(state, loss, elapsed=jnp.float32(step / steps), focus=focus)
    assert float(state.ratio) == 1
    assert float(state.reference_loss) == loss
  state = update_focus(state, 1.96, elapsed=0.3, focus=focus)
  assert (float(state.ratio), float(state.reference_loss)) == (1.0, 2.0)
  state = update_focus(state, 1.8, elapsed=0.4, focus=focus)
  np.testing.assert_allclose([state.ratio, state.reference_loss], [0.95, 1.8], rtol=1e-6)


def test_hysteresis():
  start = FocusState(jnp.float32(2), jnp.float32(2), jnp.float32(0.6))
  for state in run([2.0] * 5 + [2.09, 1.91, 2.09], focus=PLAIN, state=start):
    assert float(state.ratio) == pytest.approx(0.6)
    assert float(state.reference_loss) == 2.0
  # A constant loss moves the running loss to it, and then nothing any more.
  states = run([1.0] * 300, focus=Focus(decay=0.9), state=start)
  assert float(states[-1].ratio) < 0.6
  assert {float(state.ratio) for state in states[200:]} == {float(states[-1].ratio)}


def test_floor_and_ceiling():
  falling = run([0.5**i for i in range(60)], focus=PLAIN)
  assert float(falling[-1].ratio) == pytest.approx(0.1)
  assert min(float(state.ratio) for state in falling) == float(jnp.float32(0.1))
  np.testing.assert_allclose(falling[-1].reference_loss, 0.5**59, rtol=1e-6)
  without = run([0.5**i for i in range(60)], focus=Focus(decay=0.0, minimum_ratio=1e-6))
  np.testing.assert_allclose(without[-1].ratio, 0.95**59, rtol=1e-5)
  rising = run([2.0**i for i in range(60)], focus=PLAIN, state=falling[-1])
  assert float(rising[-1].ratio) == 1
  off = run([0.5**i for i in range(9)], focus=Focus(ratio_step=0.0, decay=0.0))
  assert {float(state.ratio) for state in off} == {1.0}


def test_jit_vmap_dtype_and_no_gradient():
  focus = Focus(decay=0.3)
  step = lambda state, loss, elapsed: update_focus(state, loss, elapsed=elapsed, focus=focus)
  states = [
    FocusState(jnp.float32(a), jnp.float32(b), jnp.float32(c))
    for a, b, c in [(1, 1, 1), (1, 2, 0.5), (2, 1, 0.3), (np.inf, np.inf, 1)]
  ]
  arguments = jnp.array([0.9, 0.5, 3.0, 1.0]), jnp.array([0.5, 0.5, 0.5, 0.01])
  one_by_one = [step(s, *a) for s, *a in zip(states, *arguments, strict=True)]
  stacked = jax.vmap(jax.jit(step))(jax.tree.map(lambda *x: jnp.stack(x), *states), *arguments)
  for name in FocusState._fields:
    expected = [getattr(state, name) for state in one_by_one]
    np.testing.assert_allclose(getattr(stacked, name), expected, rtol=1e-6)
    assert getattr(stacked, name).dtype == jnp.float32
  assert jax.grad(lambda loss: step(states[2], loss, 0.5).ema_loss)(3.0) == 0
  with jax.enable_x64(True):
    state = step(states[1], np.float64(0.5), np.float64(0.5))
    assert {leaf.dtype for leaf in state} == {jnp.dtype("float32")}


@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.5, 0.95, 1.0])
def test_exact_selection(ratio):
  select = jax.jit(select_hardest)
  rng = np.random.default_rng(0)
  for n in (1, 7, 20):
    difficulty, mask = rng.random((3, 8)).astype(np.float32), np.zeros(24, bool)
    mask[rng.permutation(24)[:n]] = True
    mask = mask.reshape(3, 8)
    k = max(1, int(n * ratio))
    threshold = np.sort(difficulty[mask])[-k]
    selected = select(np.where(mask, difficulty, np.nan), mask, jnp.float32(ratio))
    np.testing.assert_array_equal(selected, mask & (difficulty >= threshold))
    assert int(selected.sum()) == k
  assert not bool(select(difficulty, np.zeros_like(mask), jnp.float32(ratio)).any())


def test_ties_go_to_earlier_tokens_and_selections_are_nested():
  select = jax.jit(select_hardest)
  difficulty = jnp.array([[0.5, 0.2, 0.5, 0.9], [0.5, 0.5, 0.2, 0.9]])
  mask = jnp.array([[True, True, True, False], [True, True, True, True]])
  np.testing.assert_array_equal(
    select(difficulty, mask, 3 / 7 + 1e-4), [[1, 0, 1, 0], [0, 0, 0, 1]]
  )
  equal = select(jnp.full(2000, 0.5), jnp.ones(2000, bool), 0.3)
  np.testing.assert_array_equal(equal, np.arange(2000) < 600)
  previous = jnp.zeros_like(mask)
  for ratio in np.linspace(0.01, 1, 30):
    selected = select(difficulty, mask, jnp.float32(ratio))
    assert bool(jnp.all(selected | ~previous))
    previous = selected
  np.testing.assert_array_equal(previous, mask)
  batches = jnp.stack([difficulty, difficulty[::-1]]), jnp.stack([mask, mask[::-1]])
  together = jax.vmap(select, (0, 0, None))(*batches, 0.5)
  for i in range(2):
    np.testing.assert_array_equal(together[i], select(batches[0][i], batches[1][i], 0.5))


def test_a_broken_token_is_selected():
  difficulty = jnp.array([0.9, jnp.nan, 0.95, 0.1])
  selected = select_hardest(difficulty, jnp.ones(4, bool), 0.25)
  np.testing.assert_array_equal(selected, [False, True, False, False])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"ratio_step": 2.0}, r"ratio_step must be in \[0, 1\), got 2.0\."),
    ({"ratio_step": -0.1}, "ratio_step must be in"),
    ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\), got 1.0\."),
    ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0\."),
    ({"decay": float("nan")}, "decay must be in"),
    ({"minimum_ratio": 0.0}, r"minimum_ratio must be in \(0, 1\], got 0.0\."),
    ({"warmup": 1.5}, r"warmup must be in \[0, 1\], got 1.5\."),
    ({"median": "upper"}, "median must be one of all, selected, got 'upper'"),
  ],
)
def test_options_out_of_range(options, message):
  with pytest.raises(ValueError, match=message):
    Focus(**options)


def test_misuse():
  with pytest.raises(TypeError, match="floating point"):
    select_hardest(jnp.arange(3), jnp.ones(3, bool), 0.5)
  with pytest.raises(ValueError, match="mask must have shape"):
    select_hardest(jnp.ones(3), jnp.ones(2, bool), 0.5)
  for elapsed, message in (
    (jnp.zeros(3), "must be a scalar"),
    (7.0, r"must be in \[0, 1\], got 7"),
  ):
    with pytest.raises(ValueError, match=message):
      update_focus(FocusState.init(), 1.0, elapsed=elapsed, focus=Focus())


def test_all_tokens_are_distilled_at_first():
  assert FocusState.init().ratio == 1
