from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import losses
from egad_jax.losses.explicit_knowledge import ExplicitKnowledge, explicit_knowledge_loss
from egad_jax.methods.explicit_knowledge import apply_serial, init_serial, make_aekt

Z_S, Z_T = np.array([[1, 1, 1, 0], [2, 1, 0, -1]], np.float32)
OPTIONS = [
  ExplicitKnowledge(),
  ExplicitKnowledge(weight=0.5, gamma=0.7, bound=2.0, implicit="coupled", target="teacher"),
]


@pytest.fixture
def batch(batch):
  return jax.tree.map(np.asarray, batch)


def terms(student, teacher, labels, temperature):
  """TCKD, NCKD, p_y and q_y in float64, [...]."""
  softmax = lambda z: (
    np.exp(z - z.max(-1, keepdims=True))
    / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)
  )
  p, q = (softmax(np.asarray(z, np.float64) / temperature) for z in (teacher, student))
  p_y, q_y = (np.take_along_axis(d, labels[..., None], -1)[..., 0] for d in (p, q))
  tckd = p_y * np.log(p_y / q_y) + (1 - p_y) * np.log((1 - p_y) / (1 - q_y))
  other = np.arange(p.shape[-1]) != labels[..., None]
  p_o, q_o = p / (1 - p_y)[..., None], q / (1 - q_y)[..., None]
  return tckd, np.where(other, p_o * np.log(p_o / q_o), 0).sum(-1), p_y, q_y


def numpy_aekt(batch, options, temperature):
  labels = np.array(batch.teacher.argmax(-1) if options.target == "teacher" else batch.labels)
  tckd, nckd, p_y, q_y = terms(batch.student, batch.teacher, labels, temperature)
  ratio = np.clip((p_y / q_y) ** options.gamma, 1 / options.bound, options.bound)
  implicit = nckd * (1 - p_y if options.implicit == "coupled" else 1)
  weight = options.weight * ratio
  return temperature**2 * (implicit + weight * tckd), weight


def aekt(options, context, **others):
  method = make_aekt(explicit_knowledge=options, **others)
  return jax.jit(lambda s, t, y: method.loss.function(s, t, y, {}, context))


OPTION_NAMES = ("explicit_knowledge", "temperature", "ce_weight")
compiled_loss = jax.jit(explicit_knowledge_loss, static_argnames=OPTION_NAMES)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_formula(batch, context, options, temperature):
  expected, weight = numpy_aekt(batch, options, temperature)
  loss, stats = aekt(options, context, temperature=temperature, ce_weight=0.3)(*batch[:3])
  np.testing.assert_allclose(stats["weight"], weight, rtol=1e-4)
  np.testing.assert_allclose(stats["distillation_loss"], expected, rtol=1e-4)
  np.testing.assert_allclose(loss, expected + 0.3 * stats["cross_entropy"], rtol=1e-4)
  mean, metrics = compiled_loss(
    *batch, explicit_knowledge=options, temperature=temperature, ce_weight=0.3
  )
  mask = np.array(batch.mask)
  np.testing.assert_allclose(mean, np.array(loss)[mask].mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["weight_mean"], weight[mask].mean(), rtol=1e-5)


@pytest.mark.parametrize(
  ("t", "tckd", "nckd", "fkl"),
  [
    (1.0, 0.256206, 0.119630, 0.298805),
    (2.0, 0.071576, 0.030991, 0.088464),
  ],
)
def test_golden_values_of_dkd_and_kd(context, t, tckd, nckd, fkl):
  forms = ({}, {"weight": 0.0}, {"implicit": "coupled"})

  @jax.jit
  def compute(student, teacher):
    functions = (aekt(ExplicitKnowledge(gamma=0.0, **o), context, temperature=t) for o in forms)
    return [function(student, teacher, np.array(0))[0] for function in functions]

  decoupled, implicit, coupled = (float(value) / t**2 for value in compute(Z_S, Z_T))
  np.testing.assert_allclose(decoupled, tckd + nckd, atol=2e-6)
  np.testing.assert_allclose(implicit, nckd, atol=1e-6)
  np.testing.assert_allclose(coupled, fkl, atol=1e-6)


@pytest.mark.parametrize("target", ["label", "teacher"])
def test_without_adaptation_it_is_dkd_or_kd(batch, target):
  student, teacher = (np.asarray(z, np.float64) for z in batch[:2])
  labels = batch.labels if target == "label" else teacher.argmax(-1)

  def ours(z, implicit):
    options = ExplicitKnowledge(gamma=0.0, implicit=implicit, target=target)
    return explicit_knowledge_loss(
      z, teacher, *batch[2:], explicit_knowledge=options, temperature=2.0
    )[0]

  def kd(z):
    return losses.forward_kl(z, teacher, temperature=2.0)

  def dkd(z):
    return losses.target_class_kl(z, teacher, labels, temperature=2.0) + losses.non_target_class_kl(
      z, teacher, labels, temperature=2.0
    )

  @jax.jit
  def compute(student):
    return [
      (
        jax.value_and_grad(ours)(student, implicit),
        jax.value_and_grad(lambda z, f=reference: 4 * losses.masked_mean(f(z), batch.mask))(
          student
        ),
      )
      for implicit, reference in (("coupled", kd), ("decoupled", dkd))
    ]

  with jax.enable_x64(True):
    for found, expected in compute(student):
      for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_coupled_is_kd_in_float32_too(batch, context):
  function = aekt(ExplicitKnowledge(gamma=0.0, implicit="coupled"), context)
  forward_kl = jax.jit(losses.forward_kl)
  loss, _ = function(*batch[:3])
  np.testing.assert_allclose(loss, forward_kl(*batch[:2]), rtol=1e-5, atol=1e-6)
  # 1 - p_y is below the resolution of p_y.
  unsure, sure = np.array([[0, 1, 2], [40, 0, 1]], np.float32)
  loss, _ = function(unsure, sure, np.array(0))
  np.testing.assert_allclose(loss, forward_kl(unsure, sure), rtol=1e-6)


def test_ratio_is_one_where_the_models_agree_and_clipped_where_not(context):
  low, high = [-1e4, 0.0], [1e4, 0.0]
  # Student, teacher, options, and the weights to expect.
  cases = [
    # p_y = q_y = 1/2 although the other classes differ.
    ([[np.log(2.0), 0.0, 0.0]], [[np.log(3.0), np.log(2.0), 0.0]], {}, [1.0]),
    ([low, high], [high, low], {}, [10.0, 0.1]),
    ([low], [high], {"bound": 3.0}, [3.0]),
    ([low], [high], {"bound": 1.0}, [1.0]),
    ([[-9e3, 0.0]], [[0.0, 0.0]], {"gamma": 1e4}, [10.0]),
  ]

  @jax.jit
  def weights(pairs):
    functions = (aekt(ExplicitKnowledge(**options), context) for _, _, options, _ in cases)
    labels = (np.zeros(len(student), np.int32) for student, _ in pairs)
    found = (f(*pair, y) for f, pair, y in zip(functions, pairs, labels, strict=True))
    return [stats["weight"] for _, stats in found]

  found = weights([(np.float32(student), np.float32(teacher)) for student, teacher, _, _ in cases])
  for weight, (*_, expected) in zip(found, cases, strict=True):
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
  assert found[3] == 1.0


def test_the_implicit_term_leaves_the_target_alone(batch, context):
  @jax.jit
  def gradients(student):
    found = []
    for implicit in ("decoupled", "coupled"):
      function = aekt(ExplicitKnowledge(weight=0.0, implicit=implicit), context)
      found.append(jax.grad(lambda z, f=function: f(z, *batch[1:3])[0].sum())(student))
    return found

  at_label = np.arange(11) == batch.labels[..., None]
  for gradient in map(np.asarray, gradients(batch.student)):
    np.testing.assert_allclose(gradient[at_label], 0, atol=1e-7)
    assert np.abs(gradient).max() > 0.1


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_is_that_of_a_constant_ratio(batch, context, options):
  with jax.enable_x64(True):
    student, teacher = (np.asarray(z, np.float64) for z in batch[:2])
    labels = np.array(batch.labels) if options.target == "label" else teacher.argmax(-1)
    function = aekt(options, context, temperature=2.0)
    tckd, _, p_y, _ = terms(student, teacher, labels, 2.0)
    _, weight = numpy_aekt(batch._replace(student=student, teacher=teacher), options, 2.0)
    share = 1 - p_y if options.implicit == "coupled" else np.ones_like(p_y)

    def constant(z):
      implicit = losses.non_target_class_kl(z, teacher, labels, temperature=2.0)
      explicit = losses.target_class_kl(z, teacher, labels, temperature=2.0)
      return jnp.sum(4 * (share * implicit + weight * explicit))

    total = lambda s, t: function(s, t, batch.labels)[0].sum()
    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(student, teacher)
    expected = jax.jit(jax.grad(constant))(student)
    np.testing.assert_allclose(gradients[0], expected, atol=1e-12)
    np.testing.assert_array_equal(gradients[1], 0)
    # Closed form: NCKD's gradient, and q_y - p_y for the logit of the target in TCKD.
    q = np.exp(student / 2 - (student / 2).max(-1, keepdims=True))
    q_y = np.take_along_axis(q / q.sum(-1, keepdims=True), labels[..., None], -1)[..., 0]
    at_label = np.take_along_axis(np.array(gradients[0]), labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(at_label, 2 * weight * (q_y - p_y), atol=1e-12)
    assert bool(np.all(tckd >= 0))


@pytest.mark.parametrize("options", OPTIONS)
def test_models_that_agree_have_nothing_to_learn(batch, context, options):
  function = aekt(options, context)
  total = lambda z: function(z, batch.student, batch.labels)[0].sum()
  value, gradient = jax.jit(jax.value_and_grad(total))(batch.student)
  np.testing.assert_allclose(value, 0, atol=1e-5)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("serial", [False, True])
def test_masked_tokens_change_nothing(batch, options, serial):
  def function(student, behind, *rest):
    return explicit_knowledge_loss(
      student,
      *rest,
      explicit_knowledge=options,
      serial_logits=behind if serial else None,
      ce_weight=0.2,
    )[0]

  step = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
  behind = batch.student[..., ::-1]
  value, gradients = step(batch.student, behind, *batch[1:])
  poison = lambda z: np.where(batch.mask[..., None], z, np.float32(np.nan))
  labels = np.where(batch.mask, batch.labels, -100).astype(np.int32)
  poisoned = (poison(batch.student), poison(behind), poison(batch.teacher), labels)
  again = step(*poisoned, batch.mask)
  assert again[0] == value
  for gradient, same in zip(gradients, again[1], strict=True):
    np.testing.assert_array_equal(same, gradient)
    np.testing.assert_array_equal(np.asarray(gradient)[~batch.mask], 0)
  zero, gradients = step(*poisoned, np.zeros_like(batch.mask))
  assert zero == 0
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("options", OPTIONS)
def test_extreme_logits_and_ruled_out_entries_are_finite(batch, options):
  step = jax.jit(
    jax.value_and_grad(
      lambda s, t: explicit_knowledge_loss(s, t, *batch[2:], explicit_knowledge=options)[0]
    )
  )
  label = np.arange(11) == batch.labels[..., None]
  ruled_out = lambda z: np.where(label, np.float32(-np.inf), z)
  certain = lambda z: np.where(label, z, np.float32(-np.inf))
  for student, teacher in (
    (1e4 * np.sign(batch.student), 1e4 * np.sign(batch.teacher)),
    *((f(batch.student), batch.teacher) for f in (ruled_out, certain)),
    *((batch.student, f(batch.teacher)) for f in (ruled_out, certain)),
    *((f(batch.student), f(batch.teacher)) for f in (ruled_out, certain)),
  ):
    value, gradient = step(student, teacher)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_jit_axes_columns_and_dtype(batch):
  function = explicit_knowledge_loss

  @jax.jit
  def others(*batch):
    stacked = [jnp.stack([x, x[::-1]]) for x in batch]
    flat = [x.reshape((24, *x.shape[2:])) for x in batch]
    wide = [jnp.pad(z, ((0, 0), (0, 0), (0, 5)), constant_values=3.0) for z in batch[:2]]
    half = [z.astype(jnp.bfloat16) for z in batch[:2]]
    return (
      jax.vmap(function)(*stacked)[0],
      function(*flat)[0],
      function(*wide, *batch[2:], where=jnp.arange(16) < 11)[0],
      function(*half, *batch[2:])[0],
      function(*(z[..., :1] for z in batch[:2]), *batch[2:])[0],
    )

  loss, metrics = function(*batch)
  jitted, jitted_metrics = compiled_loss(*batch)
  np.testing.assert_allclose(jitted, loss, rtol=1e-6)
  for name, value in metrics.items():
    np.testing.assert_allclose(jitted_metrics[name], value, rtol=1e-6, atol=1e-7)
  mapped, flat, hidden, half, one = others(*batch)
  np.testing.assert_allclose(mapped, [loss, loss], rtol=1e-6)
  np.testing.assert_allclose(flat, loss, rtol=1e-6)
  np.testing.assert_allclose(hidden, loss, rtol=1e-6)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, loss, rtol=0.05)
  assert one == 0


def test_serial_logits_split_the_teacher_from_the_labels(batch):
  behind = batch.student[..., ::-1]
  loss, metrics = explicit_knowledge_loss(*batch, serial_logits=behind, ce_weight=0.2)
  plain, of_labels = explicit_knowledge_loss(*batch, ce_weight=0.2)
  taught, of_teacher = explicit_knowledge_loss(behind, *batch[1:])
  np.testing.assert_allclose(loss, taught + 0.2 * of_labels["cross_entropy"], rtol=1e-6)
  for name in ("cross_entropy", "student_entropy"):
    np.testing.assert_array_equal(metrics[name], of_labels[name])
  for name in ("distillation_loss", "weight_mean"):
    np.testing.assert_array_equal(metrics[name], of_teacher[name])
  same, _ = explicit_knowledge_loss(*batch, serial_logits=batch.student, ce_weight=0.2)
  np.testing.assert_allclose(same, plain, rtol=1e-6)


def test_serial_head(batch, context):
  method = make_aekt(explicit_knowledge=ExplicitKnowledge(serial=True), ce_weight=0.4)
  params = method.init_params(jax.random.key(0), student_dim=6, teacher_dim=9, num_taps=2)
  np.testing.assert_array_equal(params["serial"], np.eye(6, dtype=np.float32))
  assert params["serial"].dtype == jnp.float32
  hidden = jax.random.normal(jax.random.key(1), (3, 8, 6)).astype(jnp.bfloat16)
  mapped = method.serial.apply(params, hidden)
  assert mapped.dtype == jnp.bfloat16
  np.testing.assert_array_equal(mapped, hidden)
  permuted = method.serial.apply({"serial": jnp.eye(6)[:, ::-1]}, hidden)
  np.testing.assert_array_equal(permuted, hidden[..., ::-1])
  loss, stats = method.loss.function(*batch[:3], {}, context)
  np.testing.assert_array_equal(loss, stats["distillation_loss"])  # No cross-entropy here.
  unread = jnp.full_like(batch.teacher, jnp.nan)
  label_loss, label_stats = method.serial.label_loss(
    batch.student, unread, batch.labels, {}, context
  )
  assert set(label_stats) == {"cross_entropy", "student_entropy"}
  for name, stat in label_stats.items():
    np.testing.assert_array_equal(stat, stats[name])
  np.testing.assert_allclose(label_loss, 0.4 * stats["cross_entropy"], rtol=1e-6)
  step = lambda z: method.serial.label_loss(z, unread, batch.labels, {}, context)
  gradient = jax.grad(lambda z: step(z)[0].sum())(batch.student)
  one_hot = jax.nn.one_hot(batch.labels, 11)
  np.testing.assert_allclose(gradient, 0.4 * (jax.nn.softmax(batch.student) - one_hot), atol=1e-6)
  detached = jax.grad(lambda z: sum(s.sum() for s in step(z)[1].values()))(batch.student)
  np.testing.assert_array_equal(detached, 0)


def test_one_head_by_default():
  method = make_aekt()
  assert method.serial is None
  assert method.feature_loss is None
  assert method.init_params(jax.random.key(0), student_dim=6, teacher_dim=9, num_taps=0) == {}


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"weight": -1.0}, "weight must be >= 0 and finite, got -1.0"),
    ({"gamma": float("nan")}, "gamma must be >= 0 and finite, got nan"),
    ({"bound": 0.5}, "bound must be >= 1 and finite, got 0.5"),
    ({"bound": float("inf")}, "bound must be >= 1 and finite, got inf"),
    ({"implicit": "both"}, "implicit must be one of decoupled, coupled, got 'both'"),
    ({"target": "student"}, "target must be one of label, teacher, got 'student'"),
  ],
)
def test_misuse_of_options(options, message):
  with pytest.raises(ValueError, match=message):
    ExplicitKnowledge(**options)


def test_misuse(batch):
  serial = ExplicitKnowledge(serial=True)
  with pytest.raises(ValueError, match="a serial head needs ce_weight > 0, got 0"):
    make_aekt(explicit_knowledge=serial)
  with pytest.raises(ValueError, match="a serial head needs ce_weight > 0, got 0"):
    explicit_knowledge_loss(*batch, serial_logits=batch.student)
  with pytest.raises(ValueError, match="serial needs serial_logits, got None"):
    explicit_knowledge_loss(*batch, explicit_knowledge=serial, ce_weight=0.1)
  with pytest.raises(ValueError, match="temperature must be a positive temperature, got 0"):
    make_aekt(temperature=0.0)
  with pytest.raises(ValueError, match="ce_weight must be >= 0, got -1"):
    make_aekt(ce_weight=-1.0)
  with pytest.raises(ValueError, match="half_life must be a positive number of tokens, got 0"):
    make_aekt(half_life=0)
  with pytest.raises(ValueError, match="same shape"):
    explicit_knowledge_loss(*batch, serial_logits=batch.student[..., :9], ce_weight=0.1)


def test_serial_map_acts_from_the_right():
  hidden, kernel = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 10.0], [100.0, 1000.0]])
  np.testing.assert_array_equal(apply_serial({"serial": kernel}, hidden), [[201.0, 2010.0]])


def test_metrics_are_detached(batch):
  serial = ExplicitKnowledge(serial=True)

  def total(student, after_the_map):
    _, metrics = explicit_knowledge_loss(
      student,
      *batch[1:],
      explicit_knowledge=serial,
      serial_logits=after_the_map,
      ce_weight=0.3,
    )
    return sum(metrics.values())

  for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(batch.student, 2 * batch.student):
    np.testing.assert_array_equal(gradient, 0)


def test_the_serial_map_is_float32_where_float64_is_on():
  with jax.enable_x64(True):
    params = init_serial(jax.random.key(0), student_dim=3, teacher_dim=4, num_taps=1)
  assert params["serial"].dtype == jnp.float32
