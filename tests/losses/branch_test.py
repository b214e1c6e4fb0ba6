from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import Branch, cosine_distance, make_egad
from egad_jax.losses.branch import hard_from, in_batch_feature_loss
from egad_jax.losses.features import project

TAPS, BATCH, SEQ, DS, DT = 2, 3, 8, 4, 5


@pytest.fixture
def taps():
  keys = jax.random.split(jax.random.key(1), 3)
  params = {"kernel": jax.random.normal(keys[0], (TAPS, DS, DT)) / DS**0.5}
  student = jax.random.normal(keys[1], (TAPS, BATCH, SEQ, DS))
  return params, student, jax.random.normal(keys[2], (TAPS, BATCH, SEQ, DT))


@pytest.fixture
def stats():
  entropy = jax.random.uniform(jax.random.key(2), (BATCH, SEQ))
  return {"teacher_entropy": entropy, "hard": (entropy > 0.6).astype(jnp.float32)}


@pytest.fixture
def mask():
  return jax.random.bernoulli(jax.random.key(3), 0.8, (BATCH, SEQ))


def feature_loss(branch, taps, stats, mask, context):
  params, student, teacher = taps
  return make_egad(branch=branch).feature_loss(params, student, teacher, stats, mask, context)


def expected_sum(taps, chosen):
  params, student, teacher = taps
  distance = cosine_distance(project(params, student), teacher).mean(0)
  return float(np.where(chosen, distance, 0).sum())


def test_hard_tokens_with_places_for_all(taps, stats, mask, context):
  branch = Branch(hard_fraction=0.5, weight=0.3)  # Twice a half: no gather.
  total, metrics = feature_loss(branch, taps, stats, mask, context)
  chosen = np.array((stats["hard"] > 0) & mask)
  np.testing.assert_allclose(total, 0.3 / 0.5 * expected_sum(taps, chosen), rtol=1e-5)
  np.testing.assert_allclose(metrics["feature_loss"], [float(total), mask.sum()], rtol=1e-6)
  np.testing.assert_array_equal(metrics["hard_overflow"], [0, chosen.sum()])


def test_gather_takes_the_hardest_and_counts_the_rest(taps, stats, mask, context):
  branch = Branch(hard_fraction=0.125, weight=1.0)  # 2 places of 8.
  total, metrics = feature_loss(branch, taps, stats, mask, context)
  hard = np.array((stats["hard"] > 0) & mask)
  chosen = np.zeros_like(hard)
  for row in range(BATCH):
    order = np.argsort(-np.where(hard[row], stats["teacher_entropy"][row], -1))[:2]
    chosen[row, order] = hard[row, order]
  assert hard.sum() > chosen.sum()
  np.testing.assert_allclose(total, expected_sum(taps, chosen) / 0.125, rtol=1e-5)
  dropped = hard.sum() - chosen.sum()
  np.testing.assert_array_equal(metrics["hard_overflow"], [dropped, hard.sum()])


def test_gathered_equals_masked_when_nothing_overflows(taps, stats, mask, context):
  few = stats | {"hard": stats["hard"] * (jnp.arange(SEQ) < 3)[None, :].astype(jnp.float32)}
  gathered, _ = feature_loss(Branch(hard_fraction=0.2, weight=1.0), taps, few, mask, context)
  masked, _ = feature_loss(Branch(hard_fraction=0.5, weight=1.0), taps, few, mask, context)
  np.testing.assert_allclose(0.2 * gathered, 0.5 * masked, rtol=1e-5)


def test_controls(taps, stats, mask, context):
  everything, _ = feature_loss(Branch(weight=1.0, tokens="all"), taps, stats, mask, context)
  np.testing.assert_allclose(everything, expected_sum(taps, np.array(mask)), rtol=1e-5)
  branch = Branch(hard_fraction=0.4, weight=1.0, tokens="easy")
  easy, _ = feature_loss(branch, taps, stats, mask, context)
  chosen = np.array((stats["hard"] == 0) & mask)
  np.testing.assert_allclose(easy, expected_sum(taps, chosen) / 0.6, rtol=1e-5)


def test_easy_gather_takes_the_easiest(taps, stats, mask, context):
  branch = Branch(hard_fraction=0.875, weight=1.0, tokens="easy")  # 2 places of 8 for easy ones.
  easy, metrics = feature_loss(branch, taps, stats, mask, context)
  eligible = np.array((stats["hard"] == 0) & mask)
  chosen = np.zeros_like(eligible)
  for row in range(BATCH):
    order = np.argsort(np.where(eligible[row], stats["teacher_entropy"][row], 9))[:2]
    chosen[row, order] = eligible[row, order]
  np.testing.assert_allclose(easy, expected_sum(taps, chosen) / 0.125, rtol=1e-5)
  assert metrics["hard_overflow"][0] == eligible.sum() - chosen.sum()


def test_threshold_divides_by_its_expected_share(taps, stats, mask, context):
  branch = Branch(threshold=0.5, weight=1.0)
  share = 1 - context.state.position(jnp.float32(0.5))
  assert hard_from(context.state, branch) == 1 - share
  total, _ = feature_loss(branch, taps, stats, mask, context)
  chosen = np.array((stats["hard"] > 0) & mask)
  np.testing.assert_allclose(total, expected_sum(taps, chosen) / share, rtol=1e-5)
  # No token has been that hard so far: the share is floored, and nothing divides by zero.
  total, _ = feature_loss(Branch(threshold=15.99, weight=1.0), taps, stats, mask, context)
  np.testing.assert_allclose(total, expected_sum(taps, chosen) / 1e-3, rtol=1e-5)


def test_sum_adds_up_over_micro_batches(taps, stats, mask, context):
  params, student, teacher = taps
  branch = Branch(hard_fraction=0.25, weight=0.7)
  whole, whole_metrics = feature_loss(branch, taps, stats, mask, context)
  parts = [
    feature_loss(
      branch,
      (params, student[:, rows], teacher[:, rows]),
      {name: value[rows] for name, value in stats.items()},
      mask[rows],
      context,
    )
    for rows in (slice(0, 1), slice(1, 3))
  ]
  np.testing.assert_allclose(sum(total for total, _ in parts), whole, rtol=1e-6)
  for name, metric in whole_metrics.items():
    summed = np.sum([metrics[name] for _, metrics in parts], axis=0)
    np.testing.assert_allclose(summed, metric, rtol=1e-6)


@pytest.mark.parametrize(
  "branch", [Branch(0.125), Branch(0.5), Branch(0.125, loss="normalized_mse")]
)
def test_masked_tokens_and_teacher_get_nothing(taps, stats, mask, context, branch):
  params, student, teacher = taps
  function = lambda p, s, t, st: feature_loss(branch, (p, s, t), st, mask, context)[0]
  gradient = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))
  value, (to_params, to_student, to_teacher) = gradient(params, student, teacher, stats)
  np.testing.assert_array_equal(to_teacher, 0)
  hard = (stats["hard"] > 0) & mask
  np.testing.assert_array_equal(to_student[:, ~hard], 0)
  assert float(jnp.abs(to_params["kernel"]).max()) > 0
  poison = lambda x: jnp.where(mask[None, :, :, None], x, jnp.nan)
  poisoned_stats = {name: jnp.where(mask, x, jnp.nan) for name, x in stats.items()}
  again, (p_params, p_student, _) = gradient(
    params, poison(student), poison(teacher), poisoned_stats
  )
  assert again == value
  np.testing.assert_array_equal(p_params["kernel"], to_params["kernel"])
  np.testing.assert_array_equal(p_student, to_student)


def test_nothing_masked_in_is_zero(taps, stats, context):
  function = lambda p: feature_loss(
    Branch(), (p, *taps[1:]), stats, jnp.zeros((BATCH, SEQ), bool), context
  )[0]
  value, gradient = jax.value_and_grad(function)(taps[0])
  assert value == 0
  np.testing.assert_array_equal(gradient["kernel"], 0)


def test_jit_equals_eager(taps, stats, mask, context):
  branch = Branch(hard_fraction=0.25)
  eager, metrics = feature_loss(branch, taps, stats, mask, context)
  jitted, jitted_metrics = jax.jit(lambda *a: feature_loss(branch, *a))(taps, stats, mask, context)
  np.testing.assert_allclose(jitted, eager, rtol=1e-6)
  for name, metric in metrics.items():
    np.testing.assert_allclose(jitted_metrics[name], metric, rtol=1e-6)


def test_in_batch_mean_over_hard_tokens(taps, stats, mask):
  params, student, teacher = taps
  projected = project(params, student)
  loss = in_batch_feature_loss(projected, teacher, stats, mask, Branch(weight=0.2))
  chosen = np.array((stats["hard"] > 0) & mask)
  np.testing.assert_allclose(loss, 0.2 * expected_sum(taps, chosen) / chosen.sum(), rtol=1e-5)
  one = in_batch_feature_loss(projected[0], teacher[0], stats, mask, Branch(weight=0.2))
  same = in_batch_feature_loss(projected[:1], teacher[:1], stats, mask, Branch(weight=0.2))
  assert one == same


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"hard_fraction": 0.0}, r"hard_fraction must be in \(0, 1\], got 0.0"),
    ({"threshold": -1.0}, "threshold must be >= 0 nats or None, got -1.0"),
    ({"weight": -0.1}, "weight must be >= 0, got -0.1"),
    ({"loss": "l1"}, "loss must be one of cosine, normalized_mse, got 'l1'"),
    ({"tokens": "some"}, "tokens must be one of hard, all, easy, got 'some'"),
  ],
)
def test_misuse(options, message):
  with pytest.raises(ValueError, match=message):
    Branch(**options)


def test_features_of_another_shape(taps, stats, mask):
  _, _, teacher = taps
  with pytest.raises(ValueError, match="belong together and need branch"):
    in_batch_feature_loss(None, teacher, stats, mask, Branch())
  with pytest.raises(ValueError, match="belong together and need branch"):
    in_batch_feature_loss(teacher, teacher, stats, mask, None)
  with pytest.raises(ValueError, match="student_features must have shape"):
    in_batch_feature_loss(teacher[:, :2], teacher, stats, mask, Branch())
