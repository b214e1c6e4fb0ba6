from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egad_jax.losses import EntropyDistribution
from egad_jax.losses.distribution import EDGES, NUM_BINS

update = jax.jit(EntropyDistribution.update)
position = jax.jit(EntropyDistribution.position, static_argnames="kind")
quantile = jax.jit(EntropyDistribution.quantile)
top_share = jax.jit(EntropyDistribution.top_share)


def skewed_entropies(n: int = 6000) -> np.ndarray:
  """A third of the tokens at H near 0, the rest spread over three decades."""
  spread = np.exp(np.random.default_rng(3).uniform(-5, 2, size=2 * n // 3))
  return np.concatenate([np.full(n // 3, 1e-8), spread]).astype(np.float32)


def filled(entropy, half_life: float = 1e6) -> EntropyDistribution:
  entropy = np.asarray(entropy, np.float32)
  mask = np.ones(entropy.shape, bool)
  return update(EntropyDistribution.init(), entropy, mask, half_life=half_life)


def test_expected_position_is_a_half_with_a_third_of_the_mass_at_zero():
  entropy = skewed_entropies()
  distribution = filled(entropy)
  positions = np.asarray(position(distribution, entropy))
  np.testing.assert_allclose(positions.mean(), 0.5, atol=2e-3)
  expectation = jax.jit(lambda d: d.expectation(d.position))(distribution)
  np.testing.assert_allclose(expectation, 0.5, atol=1e-5)
  # A right-continuous distribution function would put these tokens at 1/3 and the mean at 0.55.
  np.testing.assert_allclose(positions[0], 1 / 6, atol=1e-6)
  # Uniform above the atom.
  shares = np.histogram(positions[2000:], bins=4, range=(1 / 3, 1))[0] / 4000
  np.testing.assert_allclose(shares, 0.25, atol=0.01)


def test_position_is_monotone_continuous_inside_and_in_range():
  distribution = filled(skewed_entropies())
  entropy = np.geomspace(1e-9, 100.0, 20001).astype(np.float32)
  positions = np.asarray(position(distribution, entropy))
  assert np.all(np.diff(positions) >= 0)
  assert positions[0] >= 0
  assert positions[-1] <= 1
  inner = (entropy[:-1] > EDGES[1]) & (entropy[1:] < EDGES[-2])
  assert np.max(np.where(inner, np.diff(positions), 0)) < 1e-3


def test_first_and_last_bin_are_atoms():
  distribution = filled([0.0, 0.0, 1.0, 50.0])
  positions = position(distribution, np.array([0.0, 1e-7, 15.9, 16.0, 50.0], np.float32))
  np.testing.assert_allclose(positions, [0.25, 0.25, 0.875, 0.875, 0.875], atol=1e-6)


def test_bins():
  assert EDGES.shape == (NUM_BINS + 1,)
  distribution = filled([0.0, EDGES[7], 1.0, 99.0, np.inf])
  bins = np.flatnonzero(distribution.mass)
  expected = [0, 7, np.searchsorted(EDGES, 1.0, "right") - 1, NUM_BINS - 1]
  np.testing.assert_array_equal(bins, expected)
  assert distribution.mass.sum() == 5
  assert distribution.mass.dtype == jnp.float32


def test_empty_answers_a_half():
  empty = EntropyDistribution.init()
  entropy = jnp.array([0.0, 1.0, 9.0])
  for kind in ("cdf", "median_ratio"):
    np.testing.assert_array_equal(empty.position(entropy, kind), 0.5)
  assert bool(jnp.isfinite(empty.quantile(0.5)))
  np.testing.assert_allclose(empty.expectation(empty.position), 0.5, rtol=1e-6)


def test_update_without_tokens_changes_no_bit():
  distribution = filled(skewed_entropies(300), half_life=77.0)
  distribution = update(distribution, skewed_entropies(300), np.ones(300, bool), half_life=77.0)
  nothing = jnp.full((4, 5), jnp.nan)
  again = distribution.update(nothing, jnp.zeros((4, 5), bool), half_life=77.0)
  np.testing.assert_array_equal(again.mass, distribution.mass)
  jitted = jax.jit(lambda d, e, m: d.update(e, m, half_life=77.0))
  again = jitted(distribution, nothing, jnp.zeros((4, 5), bool))
  np.testing.assert_array_equal(again.mass, distribution.mass)


def test_half_life_counts_tokens():
  old = filled(np.full(100, 0.1))
  three, half = np.full(100, 3.0, np.float32), np.arange(100) < 50
  mass = np.asarray(update(old, three, half, half_life=50.0).mass)
  np.testing.assert_allclose(mass[np.flatnonzero(old.mass)], 50.0, rtol=1e-6)
  np.testing.assert_allclose(mass.sum(), 100.0, rtol=1e-6)


def test_masked_out_tokens_are_not_seen():
  entropy = jnp.array([[0.5, jnp.nan], [2.0, 7.0]])
  mask = jnp.array([[True, False], [True, False]])
  distribution = EntropyDistribution.init().update(entropy, mask, half_life=1e3)
  np.testing.assert_array_equal(distribution.mass, filled([2.0, 0.5]).mass)


def test_order_and_sharding_change_no_bit():
  rng = np.random.default_rng(0)
  entropy = np.exp(rng.uniform(-9, 3, size=(16, 96))).astype(np.float32)
  mask = rng.random((16, 96)) < 0.8
  before = filled(skewed_entropies(999))

  def step(distribution, entropy, mask):
    return distribution.update(entropy, mask, half_life=1234.5)

  expected = jax.jit(step)(before, entropy, mask).mass
  assert len(expected.sharding.device_set) == 1
  backwards = jax.jit(step)(before, entropy[::-1, ::-1], mask[::-1, ::-1])
  np.testing.assert_array_equal(backwards.mass, expected)
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  for spec in (PartitionSpec("data", "fsdp"), PartitionSpec(("data", "fsdp"))):
    sharding = NamedSharding(mesh, spec)
    sharded = jax.jit(step, in_shardings=(None, sharding, sharding))(before, entropy, mask)
    assert len(sharded.mass.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded.mass, expected)


def test_quantile_inverts_position():
  distribution = filled(skewed_entropies())
  q = np.linspace(0.36, 0.99, 40, dtype=np.float32)
  np.testing.assert_allclose(position(distribution, quantile(distribution, q)), q, atol=1e-4)
  entropies = filled(np.exp(np.linspace(-1.0, 1.0, 6000)))
  np.testing.assert_allclose(quantile(entropies, 0.5), 1.0, rtol=1e-3)
  np.testing.assert_allclose(quantile(entropies, 0.25), np.exp(-0.5), rtol=2e-3)
  low, high = (quantile(entropies, end) for end in (0.0, 1.0))
  np.testing.assert_allclose([low, high], np.exp([-1.0, 1.0]), rtol=0.07)


def test_median_ratio():
  distribution = filled(np.exp(np.linspace(-1.0, 1.0, 6000)))
  entropy = np.array([0.0, 0.5, 1.0, 2.0], np.float32)
  expected = entropy**2 / (entropy**2 + 1)
  found = position(distribution, entropy, kind="median_ratio")
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_expectation_is_the_mean_over_tokens():
  entropy = skewed_entropies()
  distribution = filled(entropy)
  for kind in ("cdf", "median_ratio"):

    def function(entropy, kind=kind):
      return jnp.exp(1 - 2 * distribution.position(entropy, kind))

    expectation, mean = jax.jit(lambda e, f=function: (distribution.expectation(f), f(e).mean()))(
      entropy
    )
    np.testing.assert_allclose(expectation, mean, rtol=2e-3)
  np.testing.assert_allclose(distribution.expectation(jnp.ones_like), 1.0, rtol=1e-6)


def test_position_is_row_independent_detached_and_jits():
  distribution = filled(skewed_entropies())
  entropy = skewed_entropies(30)
  for kind in ("cdf", "median_ratio"):
    together = distribution.position(entropy, kind)
    alone = [position(distribution, e, kind=kind) for e in entropy]
    np.testing.assert_allclose(alone, together, atol=1e-6)
    jitted = position(distribution, entropy, kind=kind)
    np.testing.assert_allclose(jitted, together, atol=1e-6)
    grad = jax.jit(jax.grad(lambda e, kind=kind: distribution.position(e, kind).sum()))(entropy)
    np.testing.assert_array_equal(grad, 0)


def test_misuse():
  empty = EntropyDistribution.init()
  with pytest.raises(ValueError, match="kind must be one of cdf, median_ratio, got 'rank'"):
    empty.position(jnp.ones(2), "rank")
  with pytest.raises(TypeError, match="entropy must be floating point"):
    empty.position(jnp.arange(2))
  with pytest.raises(ValueError, match="one entry per token"):
    empty.update(jnp.ones((2, 3)), jnp.ones(2, bool), half_life=1.0)


def test_one_token_counts():
  two, true = np.array([2.0], np.float32), np.array([True])
  distribution = update(filled([1.0]), two, true, half_life=1e9)
  np.testing.assert_allclose(np.sum(distribution.mass), 2.0, rtol=1e-6)


@pytest.mark.parametrize("spread", [3.0, 1e-3, 0.0])
def test_the_top_share_is_exact_however_concentrated(spread):
  entropy = 2.0 * np.exp(-spread * np.random.default_rng(0).random(2000))
  higher = np.sort(entropy.astype(np.float32))
  own = filled(higher)
  for fraction in (0.01, 0.2, 0.7, 1.0):
    kept = np.asarray(top_share(own, higher, fraction))
    np.testing.assert_allclose(kept.mean(dtype=np.float64), fraction, rtol=1e-4)
    assert np.all(np.diff(kept) >= 0)
    np.testing.assert_array_less(-1e-9, kept)
    np.testing.assert_array_less(kept, 1 + 1e-9)
    if spread == 3.0:  # Only one bin is in between.
      between = higher[(kept > 0) & (kept < 1)]
      assert between.size == 0 or float(between.max() / between.min()) < 1.07
  ends = np.array([1e-9, 15.0], np.float32)
  np.testing.assert_array_equal(top_share(own, ends, 0.2), [0, 1])


def test_top_share_without_opinion_and_detached():
  empty = EntropyDistribution.init()
  np.testing.assert_allclose(empty.top_share(jnp.array([0.0, 3.0]), 0.2), 0.2)
  gradient = jax.jit(jax.grad(lambda h: empty.top_share(h, 0.2).sum()))(np.ones(2, np.float32))
  np.testing.assert_array_equal(gradient, 0)
  with pytest.raises(TypeError, match="entropy must be floating point"):
    empty.top_share(jnp.ones(2, int), 0.2)


def test_top_share_between_the_bins_and_at_an_edge():
  def shares(tokens, entropy):
    return top_share(filled(tokens, half_life=1e9), np.array(entropy, np.float32), 0.5)

  # In the empty bin at 1.0 nothing is missing and nothing is there: 0 / 0.
  np.testing.assert_array_equal(shares([0.1, 3.0], [0.1, 1.0, 3.0]), [0.0, 0.0, 1.0])
  edge = float(EDGES[200])
  np.testing.assert_array_equal(shares([0.1, edge], [0.1, edge]), [0.0, 1.0])


def test_no_gradient_passes_the_top_share_and_float64_stays():
  mass = filled([1.0, 2.0, 2.0, 3.0]).mass
  share = lambda mass, fraction: EntropyDistribution(mass).top_share(jnp.float32(2), fraction)
  for gradient in jax.jit(jax.grad(share, argnums=(0, 1)))(mass, 0.5):
    np.testing.assert_array_equal(gradient, 0)
  with jax.enable_x64(True):
    assert EntropyDistribution(mass).top_share(np.ones(2), 0.2).dtype == jnp.float64
    assert EntropyDistribution(mass).expectation(jnp.sqrt).dtype == jnp.float32


def test_all_of_a_distribution_is_kept_however_rare_a_bin():
  mass = np.asarray(filled([0.01]).mass) + 5e5 * np.asarray(filled([1.0, 2.0, 3.0]).mass)
  rare = np.array([0.01, 1.0, 3.0], np.float32)
  distribution = EntropyDistribution(jnp.asarray(mass, jnp.float32))
  np.testing.assert_array_equal(top_share(distribution, rare, 1.0), 1)
  np.testing.assert_array_equal(distribution.top_share(rare, 1.0), 1)


def test_update_takes_no_integers():
  with pytest.raises(TypeError, match="entropy must be floating point"):
    EntropyDistribution.init().update(jnp.arange(2), jnp.ones(2, bool), half_life=1.0)
