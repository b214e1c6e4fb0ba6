from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import Branch, cosine_distance
from egad_jax.losses.branch import PAIR_TOKENS, hard_from, in_batch_feature_loss
from egad_jax.losses.features import pair_distances, project
from egad_jax.methods import make_egad

TAPS, BATCH, SEQ, DS, DT = 2, 3, 8, 4, 5


@pytest.fixture
def taps():
  generator = np.random.default_rng(1)
  normal = lambda *shape: generator.normal(size=shape).astype(np.float32)
  params = {"kernel": normal(TAPS, DS, DT) / np.float32(DS**0.5)}
  return params, normal(TAPS, BATCH, SEQ, DS), normal(TAPS, BATCH, SEQ, DT)


@pytest.fixture
def stats():
  entropy = np.random.default_rng(2).uniform(size=(BATCH, SEQ)).astype(np.float32)
  return {"teacher_entropy": entropy, "hard": (entropy > 0.6).astype(np.float32)}


@pytest.fixture
def mask():
  return np.random.default_rng(3).uniform(size=(BATCH, SEQ)) < 0.8


def eager_feature_loss(branch, taps, stats, mask, context):
  params, student, teacher = taps
  return make_egad(branch=branch).feature_loss(params, student, teacher, stats, mask, context)


feature_loss = jax.jit(eager_feature_loss, static_argnums=0)
in_batch_loss = jax.jit(in_batch_feature_loss, static_argnums=4)


@jax.jit
def mean_distance(taps):
  params, student, teacher = taps
  return cosine_distance(project(params, student), teacher).mean(0)


def expected_sum(taps, chosen):
  return float(np.where(chosen, mean_distance(taps), 0).sum())


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
  few = stats | {"hard": stats["hard"] * (np.arange(SEQ) < 3)[None, :].astype(np.float32)}
  gathered, _ = feature_loss(Branch(hard_fraction=0.2, weight=1.0), taps, few, mask, context)
  masked, _ = feature_loss(Branch(hard_fraction=0.5, weight=1.0), taps, few, mask, context)
  np.testing.assert_allclose(0.2 * float(gathered), 0.5 * float(masked), rtol=1e-5)


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
  share = 1 - context.state.entropy.position(jnp.float32(0.5))
  assert hard_from(context.state.entropy, branch) == 1 - share
  total, _ = feature_loss(branch, taps, stats, mask, context)
  chosen = np.array((stats["hard"] > 0) & mask)
  np.testing.assert_allclose(total, expected_sum(taps, chosen) / share, rtol=1e-5)
  # No token has been that hard so far: the share is floored, and nothing divides by zero.
  total, _ = feature_loss(Branch(threshold=15.99, weight=1.0), taps, stats, mask, context)
  np.testing.assert_allclose(total, expected_sum(taps, chosen) / 1e-3, rtol=1e-5)


@pytest.mark.parametrize(
  "branch",
  [
    Branch(hard_fraction=0.25, weight=0.7),
    Branch(hard_fraction=0.25, softness=0.1),
    Branch(hard_fraction=0.25, loss="pair_distances"),
  ],
)
def test_sum_adds_up_over_micro_batches(taps, stats, mask, context, branch):
  params, student, teacher = taps
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
  "branch",
  [
    Branch(0.125),
    Branch(0.5),
    Branch(0.125, loss="normalized_mse"),
    Branch(0.375, loss="pair_distances"),
    Branch(0.5, loss="pair_distances"),
  ],
)
def test_masked_tokens_and_teacher_get_nothing(taps, stats, mask, context, branch):
  params, student, teacher = taps
  function = lambda p, s, t, st: feature_loss(branch, (p, s, t), st, mask, context)[0]
  gradient = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))
  value, (to_params, to_student, to_teacher) = gradient(params, student, teacher, stats)
  np.testing.assert_array_equal(to_teacher, 0)
  hard, to_student = (stats["hard"] > 0) & mask, np.asarray(to_student)
  np.testing.assert_array_equal(to_student[:, ~hard], 0)
  assert np.abs(to_student[:, hard]).max() > 0
  assert np.any(to_params["kernel"] != 0) == (branch.loss != "pair_distances")
  nan = np.float32(np.nan)
  poison = lambda x: np.where(mask[None, :, :, None], x, nan)
  poisoned_stats = {name: np.where(mask, x, nan) for name, x in stats.items()}
  again, (p_params, p_student, _) = gradient(
    params, poison(student), poison(teacher), poisoned_stats
  )
  assert again == value
  np.testing.assert_array_equal(p_params["kernel"], to_params["kernel"])
  np.testing.assert_array_equal(p_student, to_student)


def test_nothing_masked_in_is_zero(taps, stats, context):
  function = lambda p: feature_loss(
    Branch(), (p, *taps[1:]), stats, np.zeros((BATCH, SEQ), bool), context
  )[0]
  value, gradient = jax.jit(jax.value_and_grad(function))(taps[0])
  assert value == 0
  np.testing.assert_array_equal(gradient["kernel"], 0)


def test_jit_equals_eager(taps, stats, mask, context):
  branch = Branch(hard_fraction=0.25)
  eager, metrics = eager_feature_loss(branch, taps, stats, mask, context)
  jitted, jitted_metrics = feature_loss(branch, taps, stats, mask, context)
  np.testing.assert_allclose(jitted, eager, rtol=1e-6)
  for name, metric in metrics.items():
    np.testing.assert_allclose(jitted_metrics[name], metric, rtol=1e-6)


def test_in_batch_mean_over_hard_tokens(taps, stats, mask):
  params, student, teacher = taps
  projected = jax.jit(project)(params, student)
  loss = in_batch_loss(projected, teacher, stats, mask, Branch(weight=0.2))
  chosen = np.array((stats["hard"] > 0) & mask)
  np.testing.assert_allclose(loss, 0.2 * expected_sum(taps, chosen) / chosen.sum(), rtol=1e-5)
  single = np.zeros_like(mask)
  single[tuple(np.argwhere(chosen)[0])] = True
  loss = in_batch_loss(projected, teacher, stats, single, Branch(weight=0.2))
  np.testing.assert_allclose(loss, 0.2 * expected_sum(taps, single), rtol=1e-5)
  one = in_batch_loss(projected[0], teacher[0], stats, mask, Branch(weight=0.2))
  same = in_batch_loss(projected[:1], teacher[:1], stats, mask, Branch(weight=0.2))
  assert one == same
  lists = in_batch_feature_loss(
    np.asarray(projected[0]).tolist(), teacher[0].tolist(), stats, mask, Branch(weight=0.2)
  )
  np.testing.assert_allclose(lists, one, rtol=1e-6)


def test_without_a_projector_features_are_compared_as_they_are(taps, stats, mask, context):
  _, student, _ = taps
  teacher = np.random.default_rng(1).normal(size=student.shape).astype(np.float32)
  count, width = student.shape[0], student.shape[-1]
  identity = {"kernel": jnp.tile(jnp.eye(width), (count, 1, 1))}
  of = lambda branch, p: feature_loss(branch, (p, student, teacher), stats, mask, context)[0]
  plain = of(Branch(projector="none"), {})
  np.testing.assert_allclose(plain, of(Branch(), identity), rtol=1e-6)
  sizes = {"student_dim": width, "num_taps": count}
  key = jax.random.key(0)
  assert Branch(projector="none").init_params(key, teacher_dim=width, **sizes) == {}
  with pytest.raises(ValueError, match=f"features of one width, got {width} and {width + 1}"):
    Branch(projector="none").init_params(key, teacher_dim=width + 1, **sizes)


@pytest.mark.parametrize("threshold", [None, 1e9])
def test_no_hard_token_is_no_gradient_to_the_projector(taps, stats, mask, context, threshold):
  easy = stats | {"hard": np.zeros((BATCH, SEQ), np.float32)}
  branch = Branch(threshold=threshold)
  function = lambda p: feature_loss(branch, (p, *taps[1:]), easy, mask, context)[0]
  value, gradient = jax.jit(jax.value_and_grad(function))(taps[0])
  assert value == 0
  np.testing.assert_array_equal(gradient["kernel"], 0)


def test_projected_features_that_agree_get_no_gradient(taps, stats, mask, context):
  params, student, _ = taps
  teacher = 3 * jax.jit(project)(params, student)
  function = lambda p: feature_loss(Branch(), (p, student, teacher), stats, mask, context)[0]
  value, gradient = jax.jit(jax.value_and_grad(function))(params)
  np.testing.assert_allclose(value, 0, atol=1e-5)
  np.testing.assert_allclose(gradient["kernel"], 0, atol=1e-5)


@pytest.mark.parametrize("start", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("softness", [0.0, 1e-4, 0.05, 2.0])
def test_gate_and_its_expectation(start, softness):
  branch = Branch(softness=softness)
  with jax.enable_x64(True):
    h = (jnp.arange(200_000, dtype=jnp.float64) + 0.5) / 200_000
    gate, h = np.array(branch.gate(h, start)), np.array(h)
    assert gate.min() >= 0
    assert gate.max() <= 1
    assert np.all(np.diff(gate) >= 0)
    if softness:
      expected = 1 / (1 + np.exp(np.clip((start - h) / softness, None, 700)))
      np.testing.assert_allclose(gate, expected, atol=1e-12)
    np.testing.assert_allclose(gate.mean(), branch.expected_gate(start), atol=1e-6)
  np.testing.assert_allclose(branch.expected_gate(start), gate.mean(), atol=2e-6)


@functools.partial(jax.jit, static_argnums=1)
def soft_stats(stats, branch, context):
  """Stats as `token_loss` makes them: entropies over the whole distribution, and their gates."""
  entropy = jnp.exp(6 * stats["teacher_entropy"] - 4)
  position = context.state.entropy.position(entropy)
  gate = branch.gate(position, hard_from(context.state.entropy, branch))
  return {"teacher_entropy": entropy, "hard": gate}


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_soft_gate_multiplies_and_its_expectation_divides(taps, stats, mask, context, threshold):
  branch = Branch(hard_fraction=0.5, threshold=threshold, softness=0.2, weight=0.3)
  stats = soft_stats(stats, branch, context)
  total, metrics = feature_loss(branch, taps, stats, mask, context)
  distance = np.array(mean_distance(taps))
  gate = np.where(mask, stats["hard"], 0)
  assert np.unique(gate).size > 10
  start = float(hard_from(context.state.entropy, branch))
  softplus = lambda x: np.log1p(np.exp(x))
  share = 0.2 * (softplus((1 - start) / 0.2) - softplus(-start / 0.2))
  np.testing.assert_allclose(total, 0.3 * (gate * distance).sum() / share, rtol=1e-5)
  np.testing.assert_allclose(metrics["hard_overflow"], [0, gate.sum()], rtol=1e-6)


def test_soft_easy_and_hard_make_up_all(taps, stats, mask, context):
  part = lambda tokens: Branch(softness=0.2, weight=1.0, tokens=tokens)
  stats = soft_stats(stats, part("hard"), context)
  hard, easy, everything = (
    feature_loss(part(tokens), taps, stats, mask, context)[0] for tokens in ("hard", "easy", "all")
  )
  share = part("hard").expected_gate(0.5)
  np.testing.assert_allclose(share * hard + (1 - share) * easy, everything, rtol=1e-5)


def test_soft_gather_counts_the_gates_it_drops(taps, stats, mask, context):
  branch = Branch(hard_fraction=0.125, softness=0.2, weight=1.0)  # 2 places of 8.
  stats = soft_stats(stats, branch, context)
  total, metrics = feature_loss(branch, taps, stats, mask, context)
  distance = np.array(mean_distance(taps))
  gate = np.where(mask, stats["hard"], 0)
  taken = np.zeros_like(gate)
  for row in range(BATCH):
    order = np.argsort(-np.where(mask[row], stats["teacher_entropy"][row], -1))[:2]
    taken[row, order] = gate[row, order]
  share = branch.expected_gate(0.875)
  np.testing.assert_allclose(total, (taken * distance).sum() / share, rtol=1e-5)
  overflow = [gate.sum() - taken.sum(), gate.sum()]
  np.testing.assert_allclose(metrics["hard_overflow"], overflow, rtol=1e-5)


@pytest.mark.short_form(2)
@pytest.mark.parametrize("loss", ["cosine", "pair_distances"])
@pytest.mark.parametrize("tokens", ["hard", "easy"])
def test_softness_tends_to_the_hard_threshold(taps, stats, mask, context, loss, tokens):
  def value(softness):
    branch = Branch(hard_fraction=0.4, softness=softness, loss=loss, tokens=tokens)
    # Not compiled: all cases have the same operations.
    gates = soft_stats(stats, Branch(hard_fraction=0.4, softness=softness), context)
    return float(eager_feature_loss(branch, taps, gates, mask, context)[0])

  hard = value(0.0)
  near = [value(softness) for softness in (0.1, 0.01, 1e-3, 1e-5)]
  errors = [abs(one - hard) for one in near]
  assert errors[0] > errors[2]
  np.testing.assert_allclose(near[3], hard, rtol=1e-4)


def pair_sum(student, teacher, chosen):
  """Sum over chosen tokens of the mean squared difference of distances to the row's others."""
  unit = lambda x: np.array(x) / np.linalg.norm(np.array(x), axis=-1, keepdims=True)
  total = 0.0
  for k in range(TAPS):
    for row in range(chosen.shape[0]):
      index = np.flatnonzero(chosen[row])
      s, t = (unit(x[k, row, index]) for x in (student, teacher))
      squared = (s @ s.T - t @ t.T) ** 2
      total += squared.sum() / max(1, len(index) - 1) / TAPS
  return total


def test_pair_distances_of_the_hard_tokens_of_a_row(taps, stats, mask, context):
  _, student, teacher = taps
  branch = Branch(hard_fraction=0.5, weight=0.3, loss="pair_distances")
  total, metrics = feature_loss(branch, ({}, student, teacher), stats, mask, context)
  chosen = np.array((stats["hard"] > 0) & mask)
  np.testing.assert_allclose(total, 0.3 * pair_sum(student, teacher, chosen) / 0.5, rtol=1e-5)
  np.testing.assert_array_equal(metrics["hard_overflow"], [0, chosen.sum()])
  loss = in_batch_loss(student, teacher, stats, mask, branch)
  expected = 0.3 * pair_sum(student, teacher, chosen) / chosen.sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  one_row = {name: stat[0] for name, stat in stats.items()}
  loss = in_batch_loss(student[:, 0], teacher[:, 0], one_row, mask[0], branch)
  expected = 0.3 * pair_sum(student[:, :1], teacher[:, :1], chosen[:1]) / chosen[0].sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  # A scalar mask is one token, which has no others.
  alone = {name: stat[0, 0] for name, stat in stats.items()}
  assert in_batch_loss(student[0, 0, 0], teacher[0, 0, 0], alone, mask[0, 0], branch) == 0


def test_pair_distances_do_not_care_for_order_rotation_and_scale(taps, stats, mask, context):
  _, student, teacher = taps
  branch = Branch(hard_fraction=0.25, loss="pair_distances")
  value = lambda s, t, st, m: feature_loss(branch, ({}, s, t), st, m, context)[0]
  expected = value(student, teacher, stats, mask)
  order = np.array([5, 1, 7, 0, 2, 6, 4, 3])
  shuffled = {name: stat[:, order] for name, stat in stats.items()}
  again = value(student[:, :, order], teacher[:, :, order], shuffled, mask[:, order])
  np.testing.assert_allclose(again, expected, rtol=1e-5)
  rotation, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(DT, DT)))
  turned = (0.1 * teacher @ rotation).astype(np.float32)
  again = value(7 * student, turned, stats, mask)
  np.testing.assert_allclose(again, expected, rtol=1e-4)


def test_pair_distances_have_no_projector():
  sizes = {"student_dim": DS, "teacher_dim": DT, "num_taps": TAPS}
  for branch, names in ((Branch(loss="pair_distances"), set()), (Branch(), {"kernel"})):
    assert set(make_egad(branch=branch).init_params(jax.random.key(0), **sizes)) == names
  assert make_egad(branch=None).init_params(jax.random.key(0), **sizes) == {}


@pytest.mark.parametrize("form", ["running", "in_batch"])
def test_pair_distances_take_a_bounded_number_of_tokens(context, form):
  assert PAIR_TOKENS == 128
  seq = PAIR_TOKENS + 40
  generator = np.random.default_rng(6)
  student, teacher = generator.normal(size=(2, 1, 1, seq, 3)).astype(np.float32)
  entropy = generator.uniform(size=(1, seq)).astype(np.float32)
  stats = {"teacher_entropy": entropy, "hard": np.ones((1, seq), np.float32)}
  mask = np.arange(seq)[None] >= 5
  branch = Branch(hard_fraction=1.0, weight=1.0, loss="pair_distances")
  hardest = np.argsort(np.where(mask[0], -entropy[0], 9))[:PAIR_TOKENS]
  taken = (x[0, 0, hardest] for x in (student, teacher))
  mean = float(np.mean(jax.jit(pair_distances)(*taken, np.ones(PAIR_TOKENS, np.float32))))
  if form == "in_batch":
    loss = in_batch_loss(student, teacher, stats, mask, branch)
    np.testing.assert_allclose(loss, mean, rtol=1e-5)
  else:
    total, metrics = feature_loss(branch, ({}, student, teacher), stats, mask, context)
    np.testing.assert_allclose(total, mean * (seq - 5), rtol=1e-5)
    np.testing.assert_array_equal(metrics["hard_overflow"], [35, seq - 5])


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"hard_fraction": 0.0}, r"hard_fraction must be in \(0, 1\], got 0.0"),
    ({"threshold": -1.0}, "threshold must be >= 0 nats or None, got -1.0"),
    ({"weight": -0.1}, "weight must be >= 0, got -0.1"),
    ({"softness": -0.1}, "softness must be >= 0 and finite, got -0.1"),
    ({"softness": float("inf")}, "softness must be >= 0 and finite, got inf"),
    ({"loss": "l1"}, "loss must be one of cosine, normalized_mse, pair_distances, got 'l1'"),
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


def test_a_mask_of_another_shape(taps, stats, mask, context):
  with pytest.raises(ValueError, match="mask must have shape"):
    eager_feature_loss(Branch(), taps, stats, mask[:1], context)


def test_no_gradient_passes_the_metric(taps, stats, mask, context):
  def metric(student):
    found = feature_loss(Branch(), (taps[0], student, taps[2]), stats, mask, context)
    return found[1]["feature_loss"][0]

  np.testing.assert_array_equal(jax.jit(jax.grad(metric))(taps[1]), 0)
