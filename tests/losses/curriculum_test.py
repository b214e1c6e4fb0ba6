from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import Curriculum, curriculum_weights, entropy_position
from egad_jax.losses.curriculum import CURRICULUM_KINDS

KINDS = ["linear", "window", "competence", "exponential"]
H = np.array([0.0, 0.25, 0.5, 1.0], np.float32)
compiled = jax.jit(
  curriculum_weights, static_argnames=("kind", "width", "competence", "strength", "normalize")
)


def middles(n):
  """The middles of n equal parts of [0, 1]."""
  return ((np.arange(n) + 0.5) / n).astype(np.float32)


@pytest.mark.parametrize(
  ("progress", "expected"),
  [
    (0.0, [1.777778, 1.333333, 0.888889, 0.0]),
    (0.25, [1.411765, 1.176471, 0.941176, 0.470588]),
    (1.0, [0.0, 0.571429, 1.142857, 2.285714]),
  ],
)
def test_golden_values(progress, expected):
  weights = curriculum_weights(H, progress, normalize=True)
  np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_formulas():
  np.testing.assert_allclose(curriculum_weights(H, 0.25), 2 * (0.75 * (1 - H) + 0.25 * H))
  window = curriculum_weights(H, 0.5, kind="window", width=0.5)
  np.testing.assert_array_equal(window, [0, 2, 2, 0])
  competence = curriculum_weights(H, 0.5, kind="competence", competence=0.2)
  c = np.sqrt(0.5 * 0.96 + 0.04)
  np.testing.assert_allclose(competence, np.array([1, 1, 1, 0]) / c, rtol=1e-6)
  exponential = curriculum_weights(H, 0.9, kind="exponential", strength=2.0)
  np.testing.assert_allclose(exponential, 1.6 * np.exp(1.6 * H) / (np.exp(1.6) - 1), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_integral_is_one_and_weights_are_not_negative(kind, progress):
  weights = np.asarray(compiled(middles(20000), progress, kind=kind))
  np.testing.assert_allclose(weights.mean(), 1.0, atol=5e-4)
  assert weights.min() >= 0


@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_middle_is_uniform(kind):
  np.testing.assert_array_equal(compiled(H, 0.5, kind=kind), 1)


@pytest.mark.parametrize("kind", ["linear", "window", "exponential"])
@pytest.mark.parametrize("progress", [0.0, 0.2, 0.5])
def test_mirror_symmetry(kind, progress):
  forward = compiled(H, progress, kind=kind)
  mirrored = compiled(1 - H, 1 - progress, kind=kind)
  np.testing.assert_allclose(mirrored, forward, rtol=1e-5)


def test_ends_are_monotone():
  for kind in ("linear", "exponential"):
    assert np.all(np.diff(compiled(H, 0.0, kind=kind)) < 0)
    assert np.all(np.diff(compiled(H, 1.0, kind=kind)) > 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", ["rank", "minmax", "median_ratio"])
def test_equal_entropies_have_equal_weights(kind, position):
  place = jax.jit(entropy_position, static_argnames="kind")
  h = place(np.full((2, 3), 0.7, np.float32), np.ones((2, 3), bool), kind=position)
  for progress in (0.0, 0.3, 1.0):
    weights = compiled(h, progress, kind=kind, normalize=True)
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_focus_moves_to_high_entropy(kind):
  h = middles(20000)
  means = [
    np.mean(np.asarray(compiled(h, progress, kind=kind, normalize=True)) * h)
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0)
  ]
  assert np.all(np.diff(means) > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_and_normalization(kind):
  h = np.array([[0.1, np.nan], [0.2, 0.9]], np.float32)
  mask = np.array([[True, False], [True, True]])
  weights = np.asarray(compiled(h, 0.4, kind=kind, mask=mask, normalize=True))
  np.testing.assert_allclose(np.sum(weights) / 3, 1.0, rtol=1e-6)
  assert weights[0, 1] == 0
  raw = np.asarray(compiled(h, 0.4, kind=kind, mask=mask))
  np.testing.assert_allclose(weights, raw * 3 / raw.sum(), rtol=1e-5)


def test_equal_positions_and_vanishing_weights_become_ones():
  equal = np.full(4, 0.3, np.float32)
  np.testing.assert_allclose(compiled(equal, 0.1, normalize=True), 1, rtol=1e-6)
  np.testing.assert_array_equal(compiled(np.ones_like(H), 0.0, normalize=True), 1)
  nothing = compiled(H, 0.3, mask=np.zeros(4, bool), normalize=True)
  np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_keep_a_product_with_a_lower_dtype_in_float32(kind):
  weights = compiled(H, 0.3, kind=kind)
  assert (weights * jnp.ones(4, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("kind", KINDS)
def test_detached_jits_and_vmaps(kind):
  function = lambda h, progress: curriculum_weights(h, progress, kind=kind)
  eager = function(H, 0.3)
  np.testing.assert_allclose(jax.jit(function)(H, jnp.float32(0.3)), eager, rtol=1e-6)
  np.testing.assert_allclose(jax.vmap(function, (0, None))(H, 0.3), eager, rtol=1e-6)
  gradients = jax.jit(jax.grad(lambda h, p: function(h, p).sum(), argnums=(0, 1)))(H, 0.3)
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"kind": "steps"}, "kind must be one of linear, window, competence, exponential, got 'steps'"),
    ({"width": 0.0}, r"width must be in \(0, 1\], got 0.0"),
    ({"competence": 1.5}, r"competence must be in \(0, 1\], got 1.5"),
    ({"strength": -1.0}, "strength must be >= 0 and finite, got -1.0"),
  ],
)
def test_misuse(options, message):
  with pytest.raises(ValueError, match=message):
    Curriculum(**options)
  with pytest.raises(ValueError, match=message):
    curriculum_weights(H, 0.5, **options)


def test_positions_must_be_floats():
  with pytest.raises(TypeError, match="position must be floating point"):
    curriculum_weights(jnp.arange(3), 0.5)


def test_competence_ends_with_all_tokens():
  np.testing.assert_array_equal(compiled(H, 1.0, kind="competence"), 1)


@pytest.mark.parametrize("kind", CURRICULUM_KINDS)
def test_a_traced_progress_out_of_range_is_clipped(kind):
  weights = lambda phi: compiled(H, phi, kind=kind)
  for phi, end in ((1.5, 1.0), (-1.0, 0.0)):
    np.testing.assert_array_equal(weights(phi), weights(end))


@pytest.mark.parametrize("strength", [30.0, 200.0])
def test_a_steep_exponential_is_finite_and_has_mean_1(strength):
  for phi in (0.0, 1.0):
    weights = np.asarray(compiled(middles(20000), phi, kind="exponential", strength=strength))
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-3)
