"""Schedules at their ends, and the optimizer that goes by them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default, tiny
from egad_jax import from_config
from egad_jax.errors import InputError
from egad_jax.training.optimizers import (
  OptimizerOptions,
  make_optimizer,
  make_progress,
  make_schedule,
)

LONGEST = 1003
OPTIONS = OptimizerOptions(**tiny.get_config().optimizer.to_dict())


def schedule_of(num_steps, **changes):
  return make_schedule(dataclasses.replace(OPTIONS, **changes), num_steps)


def rates(num_steps, **changes):
  """Learning rates of all steps; made for `LONGEST` steps, so that all arrays have one shape."""
  schedule = schedule_of(num_steps, **changes)
  return np.asarray(schedule(np.arange(LONGEST)), np.float32)[:num_steps]


def test_ten_steps_of_tiny_begin_and_end_as_its_config_says():
  """Peak 0.003, warm-up of 2 steps, a tenth at the end."""
  found = rates(10)
  assert (found[[0, 1, 9]] == np.float32([0.0015, 0.003, 0.0003])).all()
  # By hand: half a cosine over the eight steps after the peak.
  middle = 0.0003 + 0.0027 * (1 + np.cos(np.pi * np.arange(9) / 8)) / 2
  np.testing.assert_allclose(found[1:], middle, rtol=1e-6)


@pytest.mark.parametrize(
  ("schedule", "steps", "warmup", "expected"),
  [
    ("linear", 5, 0, [1, 0.775, 0.55, 0.325, 0.1]),
    ("linear", 5, 1, [1, 0.775, 0.55, 0.325, 0.1]),
    ("linear", 4, 3, [1 / 3, 2 / 3, 1, 0.1]),
    ("cosine", 3, 0, [1, 0.55, 0.1]),
    ("cosine", 2, 0, [1, 0.1]),
    ("cosine", 2, 1, [1, 0.1]),
    ("cosine", 1, 0, [0.1]),
    ("linear", 1, 0, [0.1]),
    ("constant", 1, 0, [1]),
    ("constant", 4, 2, [0.5, 1, 1, 1]),
    # A warm-up that would take the whole run, or more.
    ("linear", 4, 4, [1 / 3, 2 / 3, 1, 0.1]),
    ("linear", 4, 1000, [1 / 3, 2 / 3, 1, 0.1]),
    ("cosine", 2, 50, [1, 0.1]),
    ("cosine", 1, 50, [0.1]),
  ],
)
def test_every_edge_of_the_warm_up(schedule, steps, warmup, expected):
  found = rates(steps, learning_rate=1.0, schedule=schedule, warmup_steps=warmup)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("peak", [3e-4, 1e-5, 0.7])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_peak_and_end_are_exact(schedule, peak, fraction):
  options = {"learning_rate": peak, "final_fraction": fraction, "schedule": schedule}
  schedule = schedule_of(LONGEST, warmup_steps=7, **options)
  assert float(schedule(6)) == np.float32(peak)
  assert float(schedule(LONGEST - 1)) == np.float32(peak * fraction)
  # Compilers divide by a constant in their own way.
  compiled = jax.jit(schedule)
  assert float(compiled(jnp.int32(6))) == np.float32(peak)
  assert float(compiled(jnp.int32(LONGEST - 1))) == np.float32(peak * fraction)
  assert (rates(LONGEST, warmup_steps=7, **options) > 0)[:-1].all()


def test_beyond_its_last_step_a_schedule_stays_where_it_ended():
  schedule, progress = make_schedule(OPTIONS, 10), make_progress(0.25, 0.75, 1.0, 10)
  assert float(schedule(10)) == float(schedule(9))
  assert float(progress(10)) == float(progress(9)) == 0.75


@pytest.mark.short_form(4)
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize(("start", "end"), [(0.25, 0.75), (0.1, 0.9), (1.0, 0.0), (0.3, 0.3)])
def test_the_curriculum_begins_at_start_and_ends_at_end(start, end, power):
  progress = jax.jit(make_progress(start, end, power, 10))
  found = np.array([progress(jnp.int32(step)) for step in range(10)])
  assert (found[0], found[-1]) == (np.float32(start), np.float32(end))
  expected = [start + (end - start) * (step / 9) ** power for step in range(10)]
  np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


def test_the_only_step_of_a_run_is_its_last():
  assert float(make_progress(0.25, 0.75, 1.0, 1)(0)) == 0.75


@pytest.mark.parametrize(("warmup", "told"), [(19, False), (20, True), (1000, True)])
def test_a_warm_up_that_takes_the_whole_run_is_cut_and_told(warmup, told, caplog):
  config = tiny.get_config()
  config.optimizer.warmup_steps = warmup
  run = from_config.plan_run(config, jax.devices()[:1])
  assert float(run.optimization.learning_rate(18)) == pytest.approx(config.optimizer.learning_rate)
  assert (f"warmup_steps ({warmup}) is cut to 19, as the run has 20 steps" in caplog.text) == told


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("curriculum.power", 0.0),
    ("curriculum.power", float("inf")),
    ("optimizer.learning_rate", float("inf")),
    ("optimizer.learning_rate", float("nan")),
    ("optimizer.final_fraction", float("nan")),
  ],
)
def test_a_schedule_that_is_none_is_refused(key, value):
  config = tiny.get_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=key):
    from_config.validate(config)


def test_the_update_has_the_learning_rate_of_its_step_whatever_was_skipped():
  """Adam's first direction is the gradient's sign, so that the update shows the rate."""
  tx = make_optimizer(dataclasses.replace(OPTIONS, weight_decay=0.0), make_schedule(OPTIONS, 10))
  params = {"x": jnp.ones(3)}
  for step, rate in ((0, 0.0015), (1, 0.003), (9, 0.0003)):
    updates, _ = tx.update({"x": jnp.array([2.0, -3.0, 1.0])}, tx.init(params), params, step=step)
    np.testing.assert_allclose(updates["x"], rate * np.array([-1, 1, -1]), rtol=1e-5)


def test_the_optimizer_is_adamw_of_optax():
  options = OptimizerOptions(**default.get_config().optimizer.to_dict())
  schedule = make_schedule(options, 100)
  ours = make_optimizer(options, schedule)
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01, mask={"w": True, "scale": False}
    ),
  )
  rng = np.random.default_rng(0)
  params = [{"w": jnp.array(rng.normal(size=(3, 2))), "scale": jnp.ones(2)}] * 2
  states = [ours.init(params[0]), theirs.init(params[1])]
  for step in range(5):
    grads = jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape)), params[0])
    moved = ours.update(grads, states[0], params[0], step=jnp.int32(step))
    expected = theirs.update(grads, states[1], params[1])
    states = [moved[1], expected[1]]
    params = [
      optax.apply_updates(p, u) for p, u in zip(params, (moved[0], expected[0]), strict=True)
    ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *params)
