"""What every method promises (`Method`), and what EGAD's mechanisms do to `token_loss`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses import Branch, Curriculum, Temperature
from egad_jax.methods import METHODS, make_egad, make_vanilla_kd

STATS = {
  "teacher_entropy",
  "student_entropy",
  "temperature",
  "weight",
  "hard",
  "distillation_loss",
  "cross_entropy",
}
# x_token has a span loss instead of a token loss: x_token_test.py.
METHODS_UNDER_TEST = {
  **{name: make for name, make in METHODS.items() if name != "x_token"},
  "egad_with_ce": functools.partial(make_egad, ce_weight=0.3),
  "egad_reverse": functools.partial(make_egad, divergence="reverse_kl"),
  "egad_mean": functools.partial(make_egad, temperature=Temperature(kind="mean")),
  "egad_mean_norm": functools.partial(
    make_egad, temperature=Temperature(position="median_ratio", compensation="mean_norm")
  ),
  "egad_gradient_norm": functools.partial(
    make_egad, temperature=Temperature(compensation="gradient_norm")
  ),
  "egad_replaced": functools.partial(
    make_egad,
    branch=Branch(threshold=0.4, hard_logits=False),
    curriculum=Curriculum(kind="competence"),
  ),
}
off = functools.partial(
  make_egad, curriculum=None, temperature=Temperature(kind="fixed"), branch=None, ce_weight=0.1
)


@pytest.fixture
def rows(batch):
  return batch.student.reshape(24, 11), batch.teacher.reshape(24, 11), batch.labels.reshape(24)


def token_loss(method, rows, context):
  return method.loss.function(*rows, {}, context)


@functools.cache
def compiled(name):
  """Jitted (rows, context) -> (loss, stats, gradients of both sums to student and teacher)."""
  method = METHODS_UNDER_TEST[name]()

  @jax.jit
  def step(rows, context):
    def sums(student, teacher):
      loss, stats = token_loss(method, (student, teacher, rows[2]), context)
      return (loss.sum(), sum(s.sum() for s in stats.values())), (loss, stats)

    _, pull, (loss, stats) = jax.vjp(sums, *rows[:2], has_aux=True)
    one, zero = jnp.float32(1), jnp.float32(0)
    return loss, stats, pull((one, zero)), pull((zero, one))

  return step


def own_context(name, context):
  """The context with the method's own state beside the distribution of entropy, filled."""
  method = METHODS_UNDER_TEST[name]()
  student, teacher = 2 * np.random.default_rng(3).normal(size=(2, 24, 11)).astype(np.float32)
  own = context._replace(state=context.state._replace(method=method.init_state().method))
  _, stats, *_ = compiled(name)((student, teacher, np.zeros(24, np.int32)), own)
  return own._replace(state=method.observe(own.state, stats, np.ones(24, bool)))


@pytest.mark.parametrize("name", METHODS_UNDER_TEST)
def test_stats_are_complete_per_token_and_detached(name, rows, context):
  method = METHODS_UNDER_TEST[name]()
  context = own_context(name, context)
  loss, stats = token_loss(method, rows, context)
  assert loss.shape == (24,)
  assert loss.dtype == jnp.float32
  assert set(stats) >= STATS
  for stat in stats.values():
    assert stat.shape == (24,)
    assert stat.dtype == jnp.float32
  ce_weight = 0.3 if name == "egad_with_ce" else 0.0
  expected = stats["distillation_loss"] + ce_weight * stats["cross_entropy"]
  np.testing.assert_array_equal(loss, expected)
  assert np.all((stats["hard"] >= 0) & (stats["hard"] <= 1))
  np.testing.assert_array_equal(stats["teacher_entropy"], losses.token_entropy(rows[1]))
  np.testing.assert_array_equal(stats["student_entropy"], losses.token_entropy(rows[0]))
  logits, labels = np.asarray(rows[0], np.float64), np.asarray(rows[2])
  cross_entropy = np.log(np.exp(logits).sum(-1)) - logits[np.arange(24), labels]
  np.testing.assert_allclose(stats["cross_entropy"], cross_entropy, rtol=1e-5)
  *_, (gradient, _) = compiled(name)(rows, context)
  np.testing.assert_array_equal(gradient, 0)


# These variants of EGAD differ from others of the list in the formula of one token alone.
SLOW = ("egad_with_ce", "egad_reverse", "egad_mean")


@pytest.mark.parametrize(
  "name",
  [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in METHODS_UNDER_TEST],
)
def test_rows_are_independent(name, rows, context):
  method = METHODS_UNDER_TEST[name]()
  context = own_context(name, context)
  rows = tuple(map(np.asarray, rows))
  function = jax.jit(
    jax.vmap(
      jax.value_and_grad(
        lambda z_s, z_t, y, ctx: token_loss(method, (z_s[None], z_t[None], y[None]), ctx)[0][0]
      ),
      (0, 0, 0, None),
    )
  )
  alone, alone_gradient = function(*rows, context)
  alone, alone_gradient = np.asarray(alone), np.asarray(alone_gradient)
  order = np.random.default_rng(0).permutation(24)
  together, _, (gradient, _), _ = compiled(name)(tuple(row[order] for row in rows), context)
  np.testing.assert_allclose(together, alone[order], rtol=2e-6, atol=1e-6)
  np.testing.assert_allclose(gradient, alone_gradient[order], rtol=2e-5, atol=1e-6)
  kept = np.arange(24) != 5
  poisoned = (*(np.where(kept[:, None], row, np.float32(np.nan)) for row in rows[:2]), rows[2])
  others, *_ = compiled(name)(poisoned, context)
  np.testing.assert_allclose(np.asarray(others)[kept], alone[kept], rtol=2e-6, atol=1e-6)
  eager = token_loss(method, rows, context)[0]
  np.testing.assert_allclose(eager, alone, rtol=2e-6, atol=1e-6)


# The others' gradients are more than a constant times a divergence's: see their own tests.
SCALED = sorted(METHODS_UNDER_TEST.keys() - {"aekt", "taid"})


@functools.partial(jax.jit, static_argnames="divergence")
def gradient_with_constants(rows, stats, ce_weight, divergence):
  def with_constants(z):
    value = getattr(losses, divergence)(z, rows[1], temperature=stats["temperature"])
    scale = stats["distillation_loss"] / jax.lax.stop_gradient(value)
    cross_entropy = -jax.nn.log_softmax(z)[jnp.arange(24), rows[2]]
    return jnp.sum(scale * value + ce_weight * cross_entropy)

  return jax.grad(with_constants)(rows[0])


@pytest.mark.parametrize("name", SCALED)
def test_gradient_is_that_of_constant_weights_and_temperatures(name, rows, context):
  _, stats, (gradient, to_teacher), _ = compiled(name)(rows, own_context(name, context))
  divergence = "reverse_kl" if name in ("adakd", "egad_reverse") else "forward_kl"
  ce_weight = 0.3 if name == "egad_with_ce" else 0.0
  constants = {key: stats[key] for key in ("temperature", "distillation_loss")}
  expected = gradient_with_constants(rows, constants, ce_weight, divergence)
  np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-6)
  np.testing.assert_array_equal(to_teacher, 0)


@pytest.mark.parametrize("name", METHODS_UNDER_TEST)
def test_state_follows_the_stats_of_tokens_that_count(name, rows, context):
  method = METHODS_UNDER_TEST[name](half_life=100.0)
  context = own_context(name, context)
  _, stats, *_ = compiled(name)(rows, context)
  mask = np.random.default_rng(1).random(24) < 0.5
  elapsed = jnp.float32(0.5)
  state = context.state
  new = method.update(state, stats, mask, elapsed)
  expected = state.entropy.update(stats["teacher_entropy"], mask, half_life=100.0)
  np.testing.assert_array_equal(new.entropy.mass, expected.mass)
  np.testing.assert_array_equal(method.observe(state, stats, mask).entropy.mass, expected.mass)
  poisoned = {key: np.where(mask, stat, np.float32(np.nan)) for key, stat in stats.items()}
  jax.tree.map(np.testing.assert_array_equal, method.update(state, poisoned, mask, elapsed), new)
  nothing = method.update(new, stats, np.zeros_like(mask), elapsed)
  jax.tree.map(np.testing.assert_array_equal, nothing, new)
  assert jax.tree.structure(new) == jax.tree.structure(method.init_state())
  for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
    assert (after.shape, after.dtype) == (before.shape, before.dtype)


def test_parameters_of_the_projector():
  key = jax.random.key(0)
  params = make_egad().init_params(key, student_dim=3, teacher_dim=4, num_taps=2)
  assert params["kernel"].shape == (2, 3, 4)
  assert make_vanilla_kd().init_params(key, student_dim=3, teacher_dim=4, num_taps=2) == {}
  assert make_vanilla_kd().feature_loss is None


@pytest.mark.parametrize("t", [1.0, 2.5])
def test_all_off_is_vanilla_kd_bit_for_bit(rows, context, t):
  fixed = Temperature(kind="fixed", base=t)
  egad = make_egad(curriculum=None, temperature=fixed, branch=None, ce_weight=0.1)
  vanilla = make_vanilla_kd(temperature=t, ce_weight=0.1)
  program = lambda m: str(jax.make_jaxpr(lambda *r: token_loss(m, r, context))(*rows))
  assert program(egad) == program(vanilla)
  expected = losses.forward_kl(*rows[:2], temperature=t)
  expected = expected * t**2 if t != 1 else expected
  _, stats = token_loss(egad, rows, context)
  np.testing.assert_array_equal(stats["distillation_loss"], expected)
  np.testing.assert_array_equal(stats["temperature"], t)
  np.testing.assert_array_equal(stats["weight"], 1)
  np.testing.assert_array_equal(stats["hard"], 0)


@pytest.mark.parametrize("make", [off, make_vanilla_kd])
def test_the_divergence_has_its_options(rows, context, make):
  method = make(divergence="skew_forward_kl", divergence_options={"alpha": 0.4})
  _, stats = token_loss(method, rows, context)
  expected = losses.skew_forward_kl(*rows[:2], alpha=0.4)
  np.testing.assert_allclose(stats["distillation_loss"], expected, rtol=1e-6)


def primitives(jaxpr):
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for parameter in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(parameter, "jaxpr", parameter)
      if hasattr(inner, "eqns"):
        yield from primitives(inner)


def test_what_is_off_is_not_in_the_program(rows, context):
  def program(**options):
    method = off(**options)
    return jax.make_jaxpr(lambda ctx, *r: token_loss(method, r, ctx))(context, *rows)

  def reads(jaxpr):
    used = {id(v) for equation in jaxpr.eqns for v in equation.invars}
    return [id(v) in used for v in jaxpr.jaxpr.invars[:2]]  # The distribution, the progress.

  vanilla = program()
  names = list(primitives(vanilla.jaxpr))
  # Two softmaxes, two entropies and a divergence at T = 1; nothing is placed or looked up.
  assert names.count("reduce_max") == 2
  assert not {"cumsum", "gather", "sort", "scatter", "clamp", "argmax"} & set(names)
  assert reads(vanilla) == [False, False]
  assert reads(program(curriculum=Curriculum())) == [True, True]
  assert reads(program(temperature=Temperature())) == [True, False]
  assert reads(program(branch=Branch())) == [True, False]
  assert list(primitives(program(temperature=Temperature()).jaxpr)).count("reduce_max") == 4


def test_neutral_values_agree_with_off(rows, context):
  neutral = context._replace(progress=jnp.float32(0.5))
  expected, _ = token_loss(off(), rows, neutral)
  for options in (
    {"curriculum": Curriculum()},
    {"curriculum": Curriculum(kind="exponential")},
    {"temperature": Temperature(strength=0.0)},
    {"temperature": Temperature(kind="mean", strength=0.0)},
  ):
    loss, _ = token_loss(off(**options), rows, neutral)
    np.testing.assert_allclose(loss, expected, rtol=1e-6, atol=1e-6)
  loss, _ = token_loss(off(branch=Branch()), rows, neutral)
  np.testing.assert_array_equal(loss, expected)


def test_each_mechanism_changes_only_its_own_term(rows, context):
  _, plain = token_loss(off(), rows, context)
  unchanged = {"teacher_entropy", "student_entropy", "cross_entropy"}

  def differences(**options):
    _, stats = token_loss(off(**options), rows, context)
    return {name for name in STATS if bool(jnp.any(stats[name] != plain[name]))}, stats

  names, stats = differences(curriculum=Curriculum())
  assert names == {"weight", "distillation_loss"}
  expected = plain["distillation_loss"] * stats["weight"]
  np.testing.assert_array_equal(stats["distillation_loss"], expected)
  position = context.state.entropy.position(stats["teacher_entropy"])
  np.testing.assert_allclose(
    stats["weight"], 2 * (0.7 * (1 - position) + 0.3 * position), rtol=1e-6
  )

  names, stats = differences(temperature=Temperature())
  assert names == {"temperature", "distillation_loss"}
  t = stats["temperature"]
  np.testing.assert_allclose(t, np.exp(-0.5 * (2 * position - 1)), rtol=1e-6)
  expected = t**2 * losses.forward_kl(*rows[:2], temperature=t)
  np.testing.assert_allclose(stats["distillation_loss"], expected, rtol=1e-6)

  names, stats = differences(branch=Branch(hard_fraction=0.4))
  assert names == {"hard"}
  np.testing.assert_array_equal(stats["hard"], position >= 0.6)
  names, stats = differences(branch=Branch(hard_fraction=0.4, hard_logits=False))
  assert names == {"hard", "distillation_loss"}
  expected = jnp.where(stats["hard"] > 0, 0, plain["distillation_loss"])
  np.testing.assert_array_equal(stats["distillation_loss"], expected)
  assert not unchanged & names


@pytest.mark.parametrize("hard_fraction", [0.2, 0.5, 0.8])
def test_hard_tokens_are_the_expected_share(context, hard_fraction):
  rng = np.random.default_rng(0)
  logits = np.exp(rng.uniform(-1, 3, size=(2000, 1))) * rng.normal(size=(2000, 11))
  method = make_egad(branch=Branch(hard_fraction=hard_fraction))

  @jax.jit
  def means(logits):
    entropy = losses.token_entropy(logits)
    state = method.observe(method.init_state(), {"teacher_entropy": entropy}, jnp.ones(2000, bool))
    labels = jnp.zeros(2000, jnp.int32)
    _, stats = method.loss.function(logits, logits, labels, {}, context._replace(state=state))
    return stats["hard"].mean(), stats["weight"].mean()

  hard, weight = means(logits.astype(np.float32))
  np.testing.assert_allclose(hard, hard_fraction, atol=0.01)
  np.testing.assert_allclose(weight, 1.0, atol=0.01)


# x_token has a loss of spans.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "x_token"])
def test_an_entropy_that_is_known_is_taken(name, rows, context):
  method = METHODS[name]()
  known = jnp.linspace(0.1, 2.0, 24)
  own = context._replace(state=context.state._replace(method=method.init_state().method))
  extras = {"teacher_entropy": known}
  _, stats = jax.jit(lambda: method.loss.function(*rows, extras, own))()
  np.testing.assert_array_equal(stats["teacher_entropy"], known)
