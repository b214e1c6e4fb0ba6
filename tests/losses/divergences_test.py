from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from egad_jax import losses
from egad_jax.losses import DIVERGENCES, log_divergences

Z_S, Z_T = np.array([1.0, 1.0, 1.0, 0.0]), np.array([2.0, 1.0, 0.0, -1.0])
LABELLED = {
  "target_class_kl": losses.target_class_kl,
  "non_target_class_kl": losses.non_target_class_kl,
}
NAMES = [*DIVERGENCES, *LABELLED]


def divergence(name, student, teacher, labels=None, **options):
  if name in DIVERGENCES:
    return DIVERGENCES[name](student, teacher, **options)
  if labels is None:
    labels = np.zeros(student.shape[:-1], np.int32)
  return LABELLED[name](student, teacher, labels, **options)


def pair(shape=(3, 4, 9), scale=2.0, dtype=np.float32):
  generator = np.random.default_rng(0)
  return tuple((scale * generator.normal(size=shape)).astype(dtype) for _ in range(2))


@jax.jit
def all_graded(student, teacher, temperature=1.0, where=None):
  """Returns {name: (sum of values, gradient)} of all divergences, as one program."""

  def graded(name):
    function = lambda z: divergence(name, z, teacher, temperature=temperature, where=where).sum()
    return jax.value_and_grad(function)(student)

  return {name: graded(name) for name in NAMES}


# Divergence, options, and its value at temperatures 1 and 2.
GOLDEN = [
  ("forward_kl", {}, 0.298805, 0.088464),
  ("reverse_kl", {}, 0.335138, 0.088680),
  ("jensen_shannon", {}, 0.075863, 0.021915),
  ("jensen_shannon", {"beta": 0.1}, 0.026828, 0.007934),
  ("jensen_shannon", {"beta": 0.9}, 0.029280, 0.007949),
  ("total_variation", {}, 0.346992, 0.177779),
  ("skew_forward_kl", {}, 0.241210, 0.071185),
  ("skew_reverse_kl", {}, 0.256548, 0.071286),
  ("token_wise_kl", {}, 0.633943, 0.177144),
  ("adaptive_kl", {}, 0.316972, 0.088571),
  ("alpha_beta", {}, 0.375042, 0.101480),
  ("target_class_kl", {}, 0.256206, 0.071576),
  ("non_target_class_kl", {}, 0.119630, 0.030991),
]


def test_golden_values():
  @jax.jit
  def compute(student, teacher):
    return [
      [divergence(name, student, teacher, temperature=t, **options) for t in (1.0, 2.0)]
      for name, options, _, _ in GOLDEN
    ]

  with jax.enable_x64(True):
    double = compute(Z_S, Z_T)
  single = compute(np.float32(Z_S), np.float32(Z_T))
  for case, exact, rounded in zip(GOLDEN, double, single, strict=True):
    np.testing.assert_allclose(exact, case[2:], atol=6e-7, err_msg=str(case))
    np.testing.assert_allclose(rounded, case[2:], atol=2e-6, err_msg=str(case))


def test_golden_gradients():
  expected = {
    "forward_kl": (
      [-0.346992, 0.060040, 0.209778, 0.077173],
      [-0.088890, 0.000635, 0.054935, 0.033320],
    ),
    "reverse_kl": (
      [-0.329356, -0.032433, 0.264489, 0.097300],
      [-0.080976, -0.011658, 0.057661, 0.034973],
    ),
  }

  @jax.jit
  def gradients(student, teacher):
    return {
      name: [jax.grad(DIVERGENCES[name])(student, teacher, temperature=t) for t in (1.0, 2.0)]
      for name in expected
    }

  with jax.enable_x64(True):
    for name, gradient in gradients(Z_S, Z_T).items():
      np.testing.assert_allclose(gradient, expected[name], atol=6e-7)


def closed_forms(p, q):
  """Gradients with respect to the student's logits at T = 1, written out by hand."""

  def centred(d):
    return q * (d - np.sum(q * d))

  skew, reverse_skew = 0.1 * p + 0.9 * q, 0.9 * p + 0.1 * q
  w = p / (p + q)
  order = np.argsort(-p)
  head = order[: np.searchsorted(np.cumsum(p[order]), 0.5) + 1]
  share = np.abs(p - q)[head].sum() / np.abs(p - q).sum()
  odds = np.full_like(p, (1 - p[0]) / (1 - q[0]))
  odds[0] = p[0] / q[0]
  others = (q - (1 - q[0]) / (1 - p[0]) * p) / (1 - q[0])
  others[0] = 0
  forward, reverse = q - p, centred(np.log(q / p))
  return {
    "forward_kl": forward,
    "reverse_kl": reverse,
    "jensen_shannon": centred(0.5 * np.log(2 * q / (p + q))),
    "skew_forward_kl": -centred(0.9 * p / skew),
    "skew_reverse_kl": centred(np.log(q / reverse_skew) + 1 - 0.1 * q / reverse_skew),
    "total_variation": 0.5 * centred(np.sign(q - p)),
    "alpha_beta": -centred((p**0.2 * q**-0.3 - q**-0.1) / 0.2),
    "adaptive_kl": share * forward + (1 - share) * reverse,
    "token_wise_kl": centred(-w * p / q + (1 - w) * (1 + np.log(q / p))),
    "target_class_kl": -centred(odds),
    "non_target_class_kl": others,
  }


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient_identities(temperature):
  with jax.enable_x64(True):
    student, teacher = pair((7,), dtype=np.float64)
    graded = all_graded(student, teacher, temperature)
  p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (teacher, student))
  for name, expected in closed_forms(p, q).items():
    gradient = temperature * np.asarray(graded.pop(name)[1])
    np.testing.assert_allclose(gradient, expected, atol=1e-12, err_msg=name)
  assert not graded


# Divergences with detached weights have, on purpose, another gradient than their value.
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("token_wise_kl", "adaptive_kl")])
def test_value_and_gradient_are_consistent(name):
  with jax.enable_x64(True):
    student, teacher = pair((2, 5), dtype=np.float64)
    function = jax.jit(lambda z: divergence(name, z, teacher))
    check_grads(function, (student,), order=1, modes=("fwd", "rev"))


def test_token_wise_gradient_is_not_that_of_its_value():
  def both(student, teacher):
    return losses.forward_kl(student, teacher) + losses.reverse_kl(student, teacher)

  @jax.jit
  def graded(*pair):
    return [jax.value_and_grad(function)(*pair) for function in (losses.token_wise_kl, both)]

  with jax.enable_x64(True):
    (ours, our_slope), (expected, slope) = graded(*pair((6,), dtype=np.float64))
  np.testing.assert_allclose(ours, expected, rtol=1e-12)
  assert np.abs(np.asarray(our_slope) - np.asarray(slope)).max() > 1e-2


def test_hot_forward_kl_matches_centred_logits():
  with jax.enable_x64(True):
    student, teacher = pair((8,), dtype=np.float64)
    difference = (student - student.mean()) - (teacher - teacher.mean())
    value = 1e6 * np.asarray(jax.jit(losses.forward_kl)(student, teacher, temperature=1e3))
    np.testing.assert_allclose(value, np.sum(difference**2) / 16, rtol=1e-2)


def test_bounds_and_relations():
  @jax.jit
  def compute(student, teacher):
    values = {name: divergence(name, student, teacher) for name in NAMES}
    return values, losses.forward_kl(teacher, student)

  student, teacher = pair((200, 7), 4.0, np.float64)
  with jax.enable_x64(True):
    values, swapped = jax.tree.map(np.asarray, compute(student, teacher))
  for name, value in values.items():
    assert np.all(value >= -1e-15), name
  forward, reverse = values["forward_kl"], values["reverse_kl"]
  assert values["jensen_shannon"].max() <= np.log(2)
  assert values["total_variation"].max() <= 1
  assert np.all(values["total_variation"] <= np.sqrt(forward / 2) + 1e-12)
  assert values["skew_forward_kl"].max() <= -np.log(0.1)
  assert values["skew_reverse_kl"].max() <= -np.log(0.1)
  low, high = np.minimum(forward, reverse), np.maximum(forward, reverse)
  assert np.all((values["adaptive_kl"] >= low) & (values["adaptive_kl"] <= high))
  np.testing.assert_allclose(swapped, reverse, rtol=1e-12)
  p_y = np.exp(teacher[:, 0]) / np.exp(teacher).sum(-1)
  parts = values["target_class_kl"] + (1 - p_y) * values["non_target_class_kl"]
  np.testing.assert_allclose(parts, forward, rtol=1e-10)


def test_limits():
  tiny = 1e-6
  points = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0))
  axes = ((0.6, 0.0), (0.0, 0.6))

  @jax.jit
  def compute(s, t):
    alpha_beta = lambda alpha, beta: losses.alpha_beta(s, t, alpha=alpha, beta=beta)
    return {
      "forward": losses.forward_kl(s, t),
      "reverse": losses.reverse_kl(s, t),
      "js": {b: losses.jensen_shannon(s, t, beta=b) for b in (0.0, 1.0, tiny, 1 - tiny)},
      "skew_forward": {a: losses.skew_forward_kl(s, t, alpha=a) for a in (0.0, 1.0)},
      "skew_reverse": {a: losses.skew_reverse_kl(s, t, alpha=a) for a in (0.0, 1.0)},
      "alpha_beta": [alpha_beta(*point) for point in points],
      "axes": [alpha_beta(*point) for point in axes],
      "near_axes": [alpha_beta(a or 1e-6, b or 1e-6) for a, b in axes],
    }

  student, teacher = pair((5, 7), dtype=np.float64)
  with jax.enable_x64(True):
    found = jax.tree.map(np.asarray, compute(student, teacher))
  forward, reverse = found["forward"], found["reverse"]
  for beta in (0.0, 1.0):
    np.testing.assert_allclose(found["js"][beta], 0, atol=1e-15)
  np.testing.assert_allclose(found["js"][tiny] / tiny, forward, rtol=1e-3)
  np.testing.assert_allclose(found["js"][1 - tiny] / tiny, reverse, rtol=1e-3)
  for alpha, expected_f, expected_r in ((0.0, forward, reverse), (1.0, 0, 0)):
    np.testing.assert_allclose(found["skew_forward"][alpha], expected_f, atol=1e-15)
    np.testing.assert_allclose(found["skew_reverse"][alpha], expected_r, atol=1e-15)
  p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (teacher, student))
  hellinger, squares = 2 * np.sum((np.sqrt(p) - np.sqrt(q)) ** 2, -1), np.sum((p - q) ** 2, -1) / 2
  expected = [forward, reverse, hellinger, squares]
  for value, limit in zip(found["alpha_beta"], expected, strict=True):
    np.testing.assert_allclose(value, limit, atol=1e-14)
  for axis, near in zip(found["axes"], found["near_axes"], strict=True):
    np.testing.assert_allclose(axis, near, rtol=1e-4)


def test_adaptive_kl_head():
  teacher = np.log(np.array([0.1, 0.3, 0.2, 0.4], np.float32))
  student = np.log(np.array([0.25, 0.3, 0.2, 0.25], np.float32))
  # head {3}: gap .15 of .30; head {3, 1} with more mass asked for: the same; all: forward KL.
  shares = {0.4: 0.5, 0.5: 0.5, 1.0: 1.0}

  @jax.jit
  def compute(s, t):
    values = {mass: losses.adaptive_kl(s, t, head_mass=mass) for mass in shares}
    return values, losses.forward_kl(s, t), losses.reverse_kl(s, t)

  values, forward, reverse = jax.tree.map(np.asarray, compute(student, teacher))
  for mass, share in shares.items():
    np.testing.assert_allclose(values[mass], share * forward + (1 - share) * reverse, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_identical_models_are_at_zero(temperature):
  _, teacher = pair((3, 4))
  for name, (value, gradient) in all_graded(teacher, teacher, temperature).items():
    np.testing.assert_allclose(value, 0, atol=1e-5, err_msg=name)
    # Rounding of q - p, over T.
    tolerance = 2e-6 / min(1.0, temperature)
    np.testing.assert_allclose(gradient, 0, atol=tolerance, err_msg=name)


def test_total_variation_has_no_kink_at_identical_models():
  # Differentiated operation by operation, q and p differ by rounding, with either sign.
  _, teacher = pair()
  gradient = jax.grad(lambda z: losses.total_variation(z, teacher, temperature=0.1).sum())(teacher)
  np.testing.assert_array_equal(gradient, 0)


def test_gradient_reaches_the_student_alone():
  @jax.jit
  def gradients(*arguments):
    return {
      name: jax.grad(
        lambda s, t, temp, name=name: divergence(name, s, t, temperature=temp).sum(), (0, 1, 2)
      )(*arguments)
      for name in NAMES
    }

  found = gradients(*pair((2, 5)), np.array([1.0, 2.0], np.float32))
  for name, (to_student, to_teacher, to_temperature) in found.items():
    assert np.abs(to_student).max() > 1e-3, name
    np.testing.assert_array_equal(to_teacher, 0, err_msg=name)
    np.testing.assert_array_equal(to_temperature, 0, err_msg=name)


@pytest.mark.short_form(6)
@pytest.mark.parametrize("name", NAMES)
def test_jit_vmap_and_leading_axes(name):
  student, teacher = pair()
  generator = np.random.default_rng(4)
  labels = generator.integers(0, 9, student.shape[:-1], np.int32)
  temperature = generator.uniform(0.5, 2.0, student.shape[:-1]).astype(np.float32)
  function = lambda s, t, y, temp: divergence(name, s, t, y, temperature=temp)

  @jax.jit
  def others(*arguments):
    alone = [function(*(a[i, 0] for a in arguments)) for i in range(3)]
    return function(*arguments), jax.vmap(jax.vmap(function))(*arguments), alone

  arguments = (student, teacher, labels, temperature)
  eager = function(*arguments)
  assert eager.shape == (3, 4)
  jitted, mapped, loop = others(*arguments)
  np.testing.assert_allclose(jitted, eager, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(mapped, eager, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(loop, np.asarray(eager)[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_padding_columns_do_not_matter():
  student, teacher = pair((2, 6))
  junk = np.array([[np.nan, 1e4, -3.0]] * 2, np.float32)
  hidden, ruled_out = np.arange(9) < 6, np.full((2, 3), -np.inf, np.float32)
  plain = all_graded(student, teacher)
  for pad, where in ((junk, hidden), (ruled_out, None)):
    padded = [np.concatenate([z, pad], axis=-1) for z in (student, teacher)]
    for name, (value, gradient) in all_graded(*padded, where=where).items():
      gradient = np.asarray(gradient)
      np.testing.assert_allclose(value, plain[name][0], atol=1e-6, err_msg=name)
      np.testing.assert_allclose(gradient[:, :6], plain[name][1], atol=1e-6, err_msg=name)
      np.testing.assert_array_equal(gradient[:, 6:], 0, err_msg=name)


@pytest.mark.parametrize("side", ["student", "teacher", "apart"])
def test_columns_ruled_out_on_one_side(side):
  student, teacher = pair((2, 6))
  if side != "teacher":
    student[:, 2] = -np.inf
  if side != "student":
    teacher[:, 4] = -np.inf
  for name, (value, gradient) in all_graded(student, teacher).items():
    assert np.isfinite(value), name
    assert value > 0, name
    assert np.all(np.isfinite(gradient)), name
    np.testing.assert_array_equal(np.asarray(gradient)[student == -np.inf], 0, err_msg=name)


def test_ruled_out_on_one_side_is_exact_where_that_is_finite():
  @jax.jit
  def compute(student, teacher):
    graded = jax.value_and_grad(losses.forward_kl)(student, teacher)
    return graded, losses.total_variation(student, teacher)

  teacher = np.array([1.0, 0.0, -np.inf])
  student = np.array([0.5, -0.5, 0.3])
  p, q = (np.exp(z) / np.exp(z).sum() for z in (teacher, student))
  with jax.enable_x64(True):
    (value, gradient), total_variation = compute(student, teacher)
  expected = np.sum(p[:2] * np.log(p[:2] / q[:2]))
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  np.testing.assert_allclose(gradient, q - p, atol=1e-12)
  np.testing.assert_allclose(total_variation, 0.5 * np.sum(np.abs(p - q)), rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 100.0])
def test_extreme_logits_stay_finite(temperature):
  student = np.array(
    [[1e4, -1e4, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0], [-1e4, 1e4, 1e4, 5.0]], np.float32
  )
  teacher = np.array(
    [[-1e4, 1e4, 0.0, -3.0], [1e4, 1.0, 0.0, 2.0], [1e4, -1e4, 0.0, 1.0]], np.float32
  )
  for name, (value, gradient) in all_graded(student, teacher, temperature).items():
    assert np.isfinite(value), name
    assert np.all(np.isfinite(gradient)), name


def test_vocabulary_of_one():
  zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
  for name, (value, gradient) in all_graded(zero, one).items():
    np.testing.assert_allclose(value, 0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(gradient, 0, atol=1e-6, err_msg=name)


def test_dtypes():
  values = jax.jit(lambda s, t: {name: divergence(name, s, t) for name in NAMES})
  student, teacher = (z.astype(jnp.bfloat16) for z in pair((4, 50)))
  rounded = values(student, teacher)
  with jax.enable_x64(True):
    exact = values(*(np.asarray(z, np.float64) for z in (student, teacher)))
  for name, value in rounded.items():
    assert value.dtype == jnp.float32, name
    assert exact[name].dtype == jnp.float64, name
    np.testing.assert_allclose(value, exact[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [
    (lambda s, t: losses.jensen_shannon(s, t, beta=1.5), ValueError, r"beta must be in \[0, 1\]"),
    (lambda s, t: losses.skew_forward_kl(s, t, alpha=-0.1), ValueError, "alpha must be in"),
    (lambda s, t: losses.skew_reverse_kl(s, t, alpha=2), ValueError, "alpha must be in"),
    (lambda s, t: losses.alpha_beta(s, t, alpha=0, beta=0), ValueError, "not both 0"),
    (lambda s, t: losses.alpha_beta(s, t, alpha=-1), ValueError, "must each be 0 or at least 0.01"),
    (lambda s, t: losses.adaptive_kl(s, t, head_mass=0), ValueError, "head_mass must be in"),
    (lambda s, t: losses.forward_kl(s, t[:, :3]), ValueError, "same shape"),
    (lambda s, t: losses.reverse_kl(s, t[0]), ValueError, "same shape"),
    (lambda s, t: losses.forward_kl(s.astype(int), t), TypeError, "student_logits must be float"),
    (lambda s, t: losses.forward_kl(s, t.astype(int)), TypeError, "teacher_logits must be float"),
    (lambda s, t: losses.target_class_kl(s, t, jnp.ones(2)), TypeError, "labels must be integers"),
    (lambda s, t: losses.target_class_kl(s, t, jnp.arange(3)), ValueError, "leading shape"),
  ],
)
def test_misuse(call, error, message):
  with pytest.raises(error, match=message):
    call(*pair((2, 5)))


@pytest.mark.parametrize("name", NAMES)
def test_help_is_that_of_the_formula_and_of_the_shared_arguments(name):
  formula = getattr(log_divergences, name)
  made = DIVERGENCES.get(name) or LABELLED[name]
  assert made.__name__ == name
  assert made.__doc__.startswith(formula.__doc__.splitlines()[0])
  assert ("not a `TopK`" in made.__doc__) == (name in LABELLED)
  options = {
    n for n, p in inspect.signature(formula).parameters.items() if p.kind is p.KEYWORD_ONLY
  }
  assert options <= set(inspect.signature(made).parameters)
  assert all(f"\n  {option}: " in made.__doc__ for option in options)


@pytest.mark.parametrize("name", NAMES)
def test_signature_names_every_argument(name):
  parameters = inspect.signature(DIVERGENCES.get(name) or LABELLED[name]).parameters
  assert {"student_logits", "teacher_logits", "temperature", "where"} <= set(parameters)
  assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
