"""`egad_loss` against an independent NumPy account of it, and what being off or masked means."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses import Branch, Curriculum, Temperature, egad_loss
from egad_jax.methods import make_egad, make_vanilla_kd

FIXED = Temperature(kind="fixed")
OFF = {"curriculum": None, "temperature": FIXED, "branch": None}
EVERYTHING = {
  "curriculum": Curriculum(),
  "temperature": Temperature(base=1.5, strength=0.7, compensation="mean_norm"),
  "branch": Branch(hard_fraction=0.4, weight=0.3),
  "ce_weight": 0.2,
}


def random_features(*shape):
  """Two arrays of such a shape."""
  rng = np.random.default_rng(0)
  return [rng.normal(size=shape).astype(np.float32) for _ in range(2)]


ALL_ON = tuple(EVERYTHING.items())


@functools.partial(jax.jit, static_argnames="options")
def compiled(batch, progress, features=(None, None), options=ALL_ON):
  return egad_loss(
    *batch,
    progress=progress,
    student_features=features[0],
    teacher_features=features[1],
    **dict(options),
  )


def numpy_egad(batch, progress, features=None, ce_weight=0.2):
  """EVERYTHING, token by token in float64, from the formulas of the documentation."""
  mask = np.array(batch.mask)
  tokens = [tuple(t) for t in np.argwhere(mask)]
  softmax = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()
  student, teacher = np.array(batch.student, np.float64), np.array(batch.teacher, np.float64)
  entropies = [-(p * np.log(p)).sum() for p in (softmax(teacher[t]) for t in tokens)]
  h = np.argsort(np.argsort(entropies)) / (len(tokens) - 1)
  weights = (1 - progress) * (1 - h) + progress * h
  weights = weights / weights.mean()
  temperatures = 1.5 * np.exp(-0.7 * (2 * h - 1))
  factors = temperatures**2 / (temperatures**2).mean()
  total, hard_distances = 0.0, []
  for i, token in enumerate(tokens):
    p, q = softmax(teacher[token] / temperatures[i]), softmax(student[token] / temperatures[i])
    total += weights[i] * factors[i] * (p * np.log(p / q)).sum() / len(tokens)
    total -= ce_weight * np.log(softmax(student[token])[batch.labels[token]]) / len(tokens)
    if features is not None and h[i] >= 0.6:
      a, b = (np.array(f, np.float64)[token] for f in features)
      hard_distances.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
  return total + (0.3 * np.mean(hard_distances) if hard_distances else 0.0)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_value_of_all_mechanisms_together(batch, progress):
  features = random_features(3, 8, 6)
  loss, metrics = compiled(batch, progress)
  np.testing.assert_allclose(loss, numpy_egad(batch, progress), rtol=1e-5)
  assert metrics["feature_loss"] == 0
  loss, metrics = compiled(batch, progress, features)
  np.testing.assert_allclose(loss, numpy_egad(batch, progress, features), rtol=1e-5)
  parts = metrics["distillation_loss"] + metrics["feature_loss"] + 0.2 * metrics["cross_entropy"]
  np.testing.assert_allclose(parts, loss, rtol=1e-6)
  np.testing.assert_allclose(metrics["weight_mean"], 1.0, rtol=1e-6)
  assert 0.35 < float(metrics["hard_fraction"]) < 0.45


def test_everything_off_is_vanilla_kd_bit_for_bit(batch):
  for t in (1.0, 2.0):
    off = OFF | {"temperature": Temperature(kind="fixed", base=t)}
    expected = losses.masked_mean(
      t**2 * losses.forward_kl(batch.student, batch.teacher, temperature=t), batch.mask
    )
    assert egad_loss(*batch, progress=0.2, **off)[0] == expected


def test_neutral_values_agree_with_off(batch):
  off, _ = compiled(batch, 0.5, options=tuple(OFF.items()))
  for neutral in (
    {"curriculum": Curriculum()},
    {"curriculum": Curriculum(kind="exponential")},
    {"temperature": Temperature(strength=0.0)},
    {"branch": Branch()},
  ):
    loss, _ = compiled(batch, 0.5, options=tuple((OFF | neutral).items()))
    np.testing.assert_allclose(loss, off, rtol=1e-6)


@pytest.mark.parametrize(
  "options",
  [
    EVERYTHING,
    OFF,
    {"temperature": Temperature(kind="mean")},
    {"temperature": Temperature(position="median_ratio"), "position": "minmax"},
    {"branch": Branch(threshold=0.5, hard_logits=False), "position": "median_ratio"},
    {"divergence": "alpha_beta", "ce_weight": 0.1},
    {"branch": Branch(threshold=0.5, softness=0.1, hard_logits=False)},
    {"branch": Branch(loss="pair_distances", softness=0.1)},
  ],
)
def test_masked_tokens_change_nothing(batch, options):
  batch, features = type(batch)(*map(np.asarray, batch)), random_features(2, 3, 8, 6)
  use_features = options.get("branch", Branch()) is not None

  def function(student, *rest):
    labelled, features = (student, *rest[:3]), rest[3:] if use_features else (None, None)
    names = dict(zip(("student_features", "teacher_features"), features, strict=True))
    return egad_loss(*labelled, progress=0.3, **names, **options)[0]

  step = jax.jit(jax.value_and_grad(function, argnums=(0, 4)))
  value, gradients = step(*batch, *features)
  assert np.isfinite(value)
  poison = lambda x: np.where(batch.mask[..., None], x, np.float32(np.nan))
  junk_labels = np.where(batch.mask, batch.labels, np.int32(-100))
  again = step(
    poison(batch.student), poison(batch.teacher), junk_labels, batch.mask, *map(poison, features)
  )
  assert again[0] == value
  for gradient, poisoned in zip(gradients, again[1], strict=True):
    np.testing.assert_array_equal(poisoned, gradient)
  np.testing.assert_array_equal(np.asarray(gradients[0])[~batch.mask], 0)
  nothing, gradients = step(
    poison(batch.student),
    poison(batch.teacher),
    junk_labels,
    np.zeros_like(batch.mask),
    *map(poison, features),
  )
  assert nothing == 0
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


def test_gradient_is_that_of_constant_weights_and_temperatures(batch):
  with jax.enable_x64(True):
    student, teacher = (np.asarray(z, np.float64) for z in batch[:2])
    mask = np.array(batch.mask)
    options = {"curriculum": Curriculum(), "temperature": Temperature(), "branch": None}

    @jax.jit
    def by_hand(student, teacher):
      position = losses.entropy_position(losses.token_entropy(teacher), mask)
      weight = losses.curriculum_weights(position, 0.2, mask=mask, normalize=True)
      t = losses.adaptive_temperature(position)
      p, q = (jax.nn.softmax(z / t[..., None]) for z in (teacher, student))
      return (weight * t)[..., None] * (q - p) / mask.sum()

    full = jax.grad(lambda z, t: egad_loss(z, t, *batch[2:], progress=0.2, **options)[0])
    found = jax.jit(full)(student, teacher)
    np.testing.assert_allclose(found, by_hand(student, teacher), atol=1e-12)


def test_only_the_student_gets_a_gradient(batch):
  features = random_features(3, 8, 6)

  def function(student, teacher, student_features, teacher_features, progress):
    return egad_loss(
      student,
      teacher,
      batch.labels,
      batch.mask,
      progress=progress,
      student_features=student_features,
      teacher_features=teacher_features,
      **EVERYTHING,
    )[0]

  step = jax.jit(jax.grad(function, argnums=range(5)))
  gradients = step(batch.student, batch.teacher, *features, 0.3)
  nonzero = [bool(np.any(np.asarray(gradient) != 0)) for gradient in gradients]
  assert nonzero == [True, False, True, False, False]


def test_padding_columns_and_rows_change_nothing(batch):
  function = jax.jit(lambda *b, **kw: egad_loss(*b, progress=0.3, **kw, **EVERYTHING)[0])
  loss = function(*batch)
  wide = [np.pad(z, ((0, 0), (0, 0), (0, 5)), constant_values=3.0) for z in batch[:2]]
  hidden = function(*wide, *batch[2:], where=np.arange(16) < 11)
  np.testing.assert_allclose(hidden, loss, rtol=1e-6)
  taller = [np.concatenate([x, np.zeros_like(x[:1])]) for x in batch]
  np.testing.assert_allclose(function(*taller), loss, rtol=1e-6)


def test_jit_leading_axes_permutation_and_dtype(batch):
  eager = lambda *b: egad_loss(*b, progress=0.3, **EVERYTHING)
  function = jax.jit(eager)
  loss, metrics = eager(*batch)
  jitted, jitted_metrics = function(*batch)
  np.testing.assert_allclose(jitted, loss, rtol=1e-6)
  for name, metric in metrics.items():
    np.testing.assert_allclose(jitted_metrics[name], metric, rtol=1e-6, atol=1e-7)
  flat = [np.reshape(x, (24, *x.shape[2:])) for x in batch]
  np.testing.assert_allclose(function(*flat)[0], loss, rtol=1e-6)
  order = np.random.default_rng(0).permutation(24)
  np.testing.assert_allclose(function(*(x[order] for x in flat))[0], loss, rtol=1e-6)
  stacked = [np.stack([x, x[::-1]]) for x in batch]
  np.testing.assert_allclose(jax.vmap(function)(*stacked)[0], [loss, loss], rtol=1e-6)
  half = function(*(np.asarray(z, jnp.bfloat16) for z in batch[:2]), *batch[2:])[0]
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, loss, rtol=0.03)


def test_threshold_routes_by_nats(batch):
  entropy = np.asarray(losses.token_entropy(batch.teacher))
  features = random_features(3, 8, 6)

  @functools.partial(jax.jit, static_argnames=("threshold", "tokens", "hard_logits"))
  def function(features, threshold, **options):
    return egad_loss(
      *batch,
      progress=0.5,
      student_features=features[0],
      teacher_features=features[1],
      **(OFF | {"branch": Branch(threshold=threshold, **options)}),
    )

  _, metrics = function(features, 0.8)
  shares = np.mean(entropy >= 0.8, where=np.asarray(batch.mask))
  np.testing.assert_allclose(metrics["hard_fraction"], shares, rtol=1e-6)
  gradient = jax.jit(jax.grad(lambda f: function(f, 1e9)[0]))(features)
  np.testing.assert_array_equal(gradient[0], 0)
  everything, _ = function(features, 0.0)
  control, _ = function(features, 1e9, tokens="all")
  np.testing.assert_allclose(everything, control, rtol=1e-6)
  replaced, metrics = function(features, 0.0, hard_logits=False)
  assert metrics["distillation_loss"] == 0
  np.testing.assert_allclose(replaced, metrics["feature_loss"], rtol=1e-6)


@pytest.mark.parametrize("hard_logits", [True, False])
def test_soft_routing(batch, hard_logits):
  features = random_features(3, 8, 6)
  branch = Branch(hard_fraction=0.3, softness=0.2, weight=0.7, hard_logits=hard_logits)
  options = OFF | {"branch": branch}
  loss, metrics = compiled(batch, 0.5, features, options=tuple(options.items()))

  @jax.jit
  def parts(batch, features):
    position = losses.entropy_position(losses.token_entropy(batch.teacher), batch.mask)
    return position, losses.cosine_distance(*features), losses.forward_kl(*batch[:2])

  position, distance, forward_kl = map(np.asarray, parts(batch, features))
  gate = np.where(batch.mask, 1 / (1 + np.exp(-(position - 0.7) / 0.2)), 0)
  tokens = np.array(batch.mask).sum()
  np.testing.assert_allclose(metrics["hard_fraction"], gate.sum() / tokens, rtol=1e-5)
  feature = 0.7 * (gate * distance).sum() / gate.sum()
  np.testing.assert_allclose(metrics["feature_loss"], feature, rtol=1e-5)
  kept = 1.0 if hard_logits else 1 - gate
  logit = (kept * np.asarray(batch.mask) * forward_kl).sum() / tokens
  np.testing.assert_allclose(loss, logit + feature, rtol=1e-5)


def test_pair_distances_take_any_widths(batch):
  student, teacher = random_features(2, 3, 8, 6)[0] + 1, random_features(2, 3, 8, 9)[1]
  options = OFF | {"branch": Branch(loss="pair_distances", tokens="all", weight=1.0)}

  def function(*features):
    return compiled(batch, 0.5, features, options=tuple(options.items()))[1]["feature_loss"]

  value = function(student, teacher)
  mask = np.array(batch.mask)
  unit = lambda x: np.array(x) / np.linalg.norm(x, axis=-1, keepdims=True)
  expected = 0.0
  for tap in range(2):
    for row in range(3):
      s, t = (unit(x[tap, row])[mask[row]] for x in (student, teacher))
      others = max(1, mask[row].sum() - 1)
      expected += ((s @ s.T - t @ t.T) ** 2).sum() / others / 2 / mask.sum()
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(function(3 * student, -teacher), value, rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"divergence": "kl"}, ValueError, "divergence must be one of forward_kl"),
    ({"position": "cdf"}, ValueError, "kind must be one of rank, minmax, median_ratio"),
    ({"ce_weight": -1.0}, ValueError, "ce_weight must be >= 0, got -1.0"),
    ({"teacher_features": jnp.ones((3, 8, 2))}, ValueError, "belong together"),
    ({"where": jnp.ones(3)}, ValueError, "one entry per vocabulary id"),
  ],
)
def test_misuse(batch, options, error, message):
  with pytest.raises(error, match=message):
    egad_loss(*batch, progress=0.5, **options)


def test_wrong_shapes(batch):
  student, teacher, labels, mask = batch
  with pytest.raises(ValueError, match="same shape"):
    egad_loss(student[..., :9], teacher, labels, mask, progress=0.5)
  with pytest.raises(ValueError, match="one entry per token"):
    egad_loss(student, teacher, labels, mask[:2], progress=0.5)
  with pytest.raises(TypeError, match="labels must be integers"):
    egad_loss(student, teacher, labels.astype(float), mask, progress=0.5)


def test_makers_check_their_arguments():
  with pytest.raises(ValueError, match="half_life must be a positive number of tokens, got 0"):
    make_egad(half_life=0)
  with pytest.raises(ValueError, match="ce_weight must be >= 0"):
    make_egad(ce_weight=-0.1)
  with pytest.raises(ValueError, match="base must be a positive temperature, got -1"):
    make_vanilla_kd(temperature=-1.0)
  with pytest.raises(ValueError, match="takes the options beta, got alpha"):
    make_egad(divergence="jensen_shannon", divergence_options={"alpha": 0.1})


def test_a_number_is_a_fixed_temperature(batch):
  loss = functools.partial(egad_loss, *batch, progress=0.3)
  fixed = Temperature(kind="fixed", base=2.0)
  assert loss(temperature=2.0)[0] == loss(temperature=fixed)[0]
  for name, kind in (("curriculum", "Curriculum"), ("branch", "Branch")):
    with pytest.raises(TypeError, match=f"{name} must be a {kind}, got 'linear'"):
      loss(**{name: "linear"})


@pytest.mark.parametrize(
  ("progress", "message"),
  [
    (100, r"progress must be in \[0, 1\], got 100; a step is divided by their number"),
    (-0.1, "got -0.1"),
    (jnp.zeros(8), r"progress must be a scalar, got shape \(8,\)"),
  ],
)
def test_progress_is_a_share(batch, progress, message):
  with pytest.raises(ValueError, match=message):
    egad_loss(*batch, progress=progress)


def test_metrics_are_detached(batch):
  def total(student, features):
    options = dict(ALL_ON)
    _, metrics = egad_loss(
      student,
      *batch[1:],
      progress=0.5,
      student_features=features,
      teacher_features=jnp.ones_like(features),
      **options,
    )
    return sum(metrics.values())

  features = random_features(*batch.labels.shape, 3)[0]
  for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(batch.student, features):
    np.testing.assert_array_equal(gradient, 0)
