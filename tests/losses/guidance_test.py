from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import (
  Branch,
  Curriculum,
  EntropyDistribution,
  Temperature,
  adaptive_temperature,
  curriculum_weights,
  entropy_position,
)
from egad_jax.losses.branch import hard_from
from egad_jax.losses.guidance import in_batch_guidance, running_guidance

ENTROPY = jnp.array([1e-8, 0.05, 0.3, 1.0, 2.5])


def running(context, **options):
  options = {"curriculum": None, "branch": None, "temperature": Temperature()} | options
  state = {"distribution": context.state.entropy, "progress": context.progress}
  state["elapsed"] = context.elapsed
  return running_guidance(ENTROPY, **state, **options)


def in_batch(mask=None, **options):
  options = {"curriculum": None, "branch": None, "temperature": Temperature()} | options
  mask = jnp.ones(5, bool) if mask is None else mask
  options = {"kind": "rank", "elapsed": None} | options
  return in_batch_guidance(ENTROPY, mask=mask, progress=0.3, **options)


def test_running_reads_the_distribution(context):
  position = context.state.entropy.position(ENTROPY)
  curriculum = Curriculum(kind="exponential", strength=1.0)
  placed = running(context, curriculum=curriculum, branch=Branch(hard_fraction=0.3))
  np.testing.assert_array_equal(placed.temperature, adaptive_temperature(position))
  np.testing.assert_array_equal(placed.factor, placed.temperature**2)
  expected = curriculum_weights(position, 0.3, kind="exponential", strength=1.0)
  np.testing.assert_array_equal(placed.weight, expected)
  np.testing.assert_array_equal(placed.hard, position >= 0.7)


def test_running_threshold_is_a_comparison_of_positions(context):
  placed = running(context, branch=Branch(threshold=0.3))
  assert placed.hard.tolist() == [False, False, True, True, True]


def test_annealing_reads_how_much_of_the_training_is_over(context):
  context = context._replace(elapsed=jnp.float32(0.25))
  annealed, constant = Temperature(anneal=0.5), Temperature()
  placed = running(context, temperature=annealed)
  expected = running(context, temperature=constant).temperature ** 0.5
  np.testing.assert_allclose(placed.temperature, expected, rtol=1e-6)
  np.testing.assert_allclose(placed.factor, expected**2, rtol=1e-6)
  placed = in_batch(temperature=annealed, elapsed=0.25)
  expected = in_batch(temperature=constant).temperature ** 0.5
  np.testing.assert_allclose(placed.temperature, expected, rtol=1e-6)


def test_off_means_nothing(context):
  fixed = Temperature(kind="fixed", base=2.0)
  for placed in (running(context, temperature=fixed), in_batch(temperature=fixed)):
    assert placed.temperature == 2.0
    assert isinstance(placed.temperature, float)
    assert placed.factor == 4.0
    assert placed.weight is None
    assert placed.hard is None


@pytest.mark.parametrize("place", ["running", "in_batch"])
@pytest.mark.parametrize("position", ["cdf", "median_ratio"])
def test_mean_temperature_and_mean_norm(context, place, position):
  def placed(**options):
    temperature = Temperature(position=position, strength=1.0, **options)
    if place == "running":
      return running(context, temperature=temperature)
    return in_batch(temperature=temperature)

  mean = placed(kind="mean").temperature
  assert mean.ndim == 0
  adaptive = placed().temperature
  if place == "in_batch":
    np.testing.assert_allclose(mean, adaptive.mean(), rtol=1e-6)
    norm = placed(compensation="mean_norm").factor
    np.testing.assert_allclose(norm.mean(), 1.0, rtol=1e-6)
  else:
    entropy = jnp.exp(jax.random.uniform(jax.random.key(9), (500,), minval=-4.0, maxval=1.0))
    drawn = adaptive_temperature(context.state.entropy.position(entropy, position), strength=1.0)
    np.testing.assert_allclose(mean, drawn.mean(), rtol=1e-2)
    norm = placed(compensation="mean_norm").factor
    np.testing.assert_allclose(adaptive**2 / norm, (drawn**2).mean(), rtol=1e-2)
  np.testing.assert_allclose(placed(kind="mean").factor, mean**2, rtol=1e-6)
  np.testing.assert_allclose(placed(kind="mean", compensation="mean_norm").factor, 1.0, rtol=1e-6)
  assert placed(kind="fixed", compensation="mean_norm").factor == 1.0


def test_in_batch_reads_the_batch():
  mask = jnp.array([1, 1, 1, 1, 0], bool)
  placed = in_batch(mask, curriculum=Curriculum(), branch=Branch(hard_fraction=0.5))
  position = entropy_position(ENTROPY, mask)
  np.testing.assert_allclose(placed.temperature, adaptive_temperature(position), rtol=1e-6)
  expected = curriculum_weights(position, 0.3, mask=mask, normalize=True)
  np.testing.assert_allclose(placed.weight, expected, rtol=1e-6)
  assert placed.hard[:4].tolist() == [False, False, True, True]
  nats = in_batch(branch=Branch(threshold=0.9)).hard
  assert nats.tolist() == [False, False, False, True, True]


def test_soft_gates(context):
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  position = np.array(context.state.entropy.position(ENTROPY))
  gate = running(context, branch=Branch(hard_fraction=0.3, softness=0.1)).hard
  np.testing.assert_allclose(gate, sigmoid((position - 0.7) / 0.1), rtol=1e-5)
  gate = running(context, branch=Branch(threshold=0.3, softness=0.1)).hard
  np.testing.assert_allclose(gate, sigmoid((position - position[2]) / 0.1), rtol=1e-5)
  rank = np.arange(5) / 4
  gate = in_batch(branch=Branch(hard_fraction=0.3, softness=0.1)).hard
  np.testing.assert_allclose(gate, sigmoid((rank - 0.7) / 0.1), rtol=1e-5)
  gate = in_batch(branch=Branch(threshold=0.9, softness=0.1)).hard
  np.testing.assert_allclose(gate, sigmoid((rank - 0.625) / 0.1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["rank", "minmax", "median_ratio"])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.04, 0.4, 2.5, 9.0])
def test_softness_tends_to_the_hard_gate(context, kind, threshold):
  hard, soft = (Branch(0.3, threshold=threshold, softness=s) for s in (0.0, 1e-6))
  mask = jnp.array([1, 1, 0, 1, 1], bool)
  gates = [in_batch(mask, branch=branch, kind=kind).hard for branch in (hard, soft)]
  np.testing.assert_allclose(gates[1][mask], gates[0][mask], atol=1e-6)
  if threshold is not None:
    np.testing.assert_array_equal(gates[0], np.array(ENTROPY) >= threshold)
    equal = lambda branch: (
      in_batch_guidance(
        jnp.ones(3),
        mask=jnp.ones(3, bool),
        progress=0.0,
        elapsed=None,
        curriculum=None,
        kind=kind,
        temperature=Temperature(),
        branch=branch,
      ).hard
    )
    np.testing.assert_allclose(equal(soft), equal(hard), atol=1e-6)
  elsewhere = [running(context, branch=branch).hard for branch in (hard, soft)]
  # A token just at the threshold keeps a gate of 1/2.
  apart = context.state.entropy.position(ENTROPY) != hard_from(context.state.entropy, hard)
  np.testing.assert_allclose(elsewhere[1][apart], elsewhere[0][apart], atol=1e-6)


def test_in_batch_without_tokens_stays_positive():
  for temperature in (Temperature(kind="mean", base=1.5), Temperature(compensation="mean_norm")):
    placed = in_batch(jnp.zeros(5, bool), temperature=temperature)
    assert float(jnp.min(placed.temperature)) > 0
    assert bool(jnp.all(jnp.isfinite(placed.factor)))


def test_empty_distribution_is_neutral(context):
  empty = context._replace(state=context.state._replace(entropy=EntropyDistribution.init()))
  placed = running(empty, curriculum=Curriculum(), branch=Branch(hard_fraction=0.25))
  np.testing.assert_allclose(placed.temperature, 1.0, rtol=1e-6)
  np.testing.assert_allclose(placed.weight, 1.0, rtol=1e-6)
  assert not bool(jnp.any(placed.hard))


def test_in_batch_weights_have_mean_one_whatever_the_positions():
  weight = in_batch(kind="minmax", curriculum=Curriculum()).weight
  assert float(jnp.ptp(weight)) > 0.5
  np.testing.assert_allclose(weight.mean(), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
  ("compensation", "factor"),
  [("per_token", 9.0), ("linear", 3.0), ("none", 1.0), ("mean_norm", 1.0)],
)
def test_compensation_of_a_fixed_temperature(compensation, factor):
  fixed = Temperature(kind="fixed", base=3.0, compensation=compensation)
  assert in_batch(temperature=fixed).factor == factor
