"""The train step against itself: split, masked, sharded, switched off and broken."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import tiny
from egad_jax import build, sharding
from egad_jax.data.batches import Batch, shift
from egad_jax.head import distillation_head, sharded_head
from egad_jax.losses import Branch, Curriculum, Temperature
from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.egad import make_egad, make_vanilla_kd
from egad_jax.losses.method import Method
from egad_jax.models.config import DecoderConfig
from egad_jax.models.model import make_model
from egad_jax.training.step import Metrics, TrainState, make_train_step, micro_batches
from egad_jax.training.teachers import colocated_teacher

VOCAB, ROWS, SEQ = 64, 8, 16
STUDENT = DecoderConfig(
  vocab_size=VOCAB, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32
)
TEACHER = DecoderConfig(
  vocab_size=VOCAB, dim=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48
)
STUDENT_TAPS, TEACHER_TAPS = (1, 2), (1, 3)
PROGRESS = 0.25
# Fewer hard tokens than half, so that a row gathers its places.
FULL = {"ce_weight": 0.1, "branch": Branch(weight=1.0, hard_fraction=0.3)}
OFF = {"curriculum": None, "temperature": Temperature(kind="fixed"), "branch": None}
# sgd with momentum 0 keeps each gradient in its state: params - updated would round it away.
TX = optax.sgd(1.0, momentum=0.0)


def packed_batch(seed: int = 0) -> Batch:
  """Rows of random segments and very different padding; the last one trains nothing."""
  rng = np.random.default_rng(seed)
  tokens, segments, positions = np.zeros((3, ROWS, SEQ + 1), np.int32)
  for row, length in enumerate((17, 3, 12, 2, 9, 17, 5, 0)):
    cut = length // 2 if row % 2 == 0 else length
    tokens[row, :length] = rng.integers(0, VOCAB, length)
    segments[row, :length] = np.where(np.arange(length) < cut, 1, 2)
    positions[row, :length] = np.where(
      np.arange(length) < cut, np.arange(length), np.arange(length) - cut
    )
  return shift(tokens, segments, positions, np.ones_like(tokens))


def teacher_params():
  params = jax.jit(make_model(TEACHER).init)(jax.random.key(1))
  return params | {"embedding": 20 * params["embedding"]}


def initial_state(method: Method, *, filled: bool = True) -> TrainState:
  params = {
    "student": jax.jit(make_model(STUDENT).init)(jax.random.key(0)),
    "method": method.init_params(
      jax.random.key(2),
      student_dim=STUDENT.dim,
      teacher_dim=TEACHER.dim,
      num_taps=len(STUDENT_TAPS),
    ),
  }
  distribution = method.init_state()
  if filled:
    distribution = distribution.update(
      jnp.linspace(0.0, np.log(VOCAB), 1000), jnp.ones(1000, bool), half_life=1e6
    )
  return TrainState(jnp.int32(0), params, TX.init(params), distribution)


def make_step(method: Method, *, accumulation: int = 1, mesh=None, progress: float = PROGRESS):
  constrain = sharding.constrain(mesh)
  head = distillation_head(method.token_loss, chunk_size=8)
  if mesh is not None:
    axes = {"batch_axes": sharding.BATCH_AXES, "sequence_axes": sharding.SEQUENCE_AXES}
    head = sharded_head(head, mesh, **axes)
  taps = method.feature_loss is not None
  return jax.jit(
    make_train_step(
      student=make_model(STUDENT, remat="full", constrain=constrain),
      teacher=colocated_teacher(
        make_model(TEACHER, constrain=constrain), taps=TEACHER_TAPS if taps else ()
      ),
      method=method,
      head=head,
      tx=TX,
      learning_rate=optax.constant_schedule(1.0),
      progress=optax.constant_schedule(progress),
      student_taps=STUDENT_TAPS if taps else (),
      accumulation=accumulation,
    )
  )


def run(method: Method, batch: Batch | None = None, **options) -> tuple[TrainState, Metrics]:
  batch = packed_batch() if batch is None else batch
  return make_step(method, **options)(initial_state(method), teacher_params(), batch)


def gradients(state: TrainState):
  return state.opt_state[0].trace


def mean(metrics: Metrics, name: str) -> float:
  total, count = metrics[name]
  return float(total) / float(count)


def assert_close(actual, expected, tolerance):
  """Every leaf to `tolerance` relative to its norm."""
  leaves, structure = jax.tree.flatten_with_path(expected)
  assert jax.tree.structure(actual) == structure
  for (path, e), a in zip(leaves, jax.tree.leaves(actual), strict=True):
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    assert np.linalg.norm(a - e) <= tolerance * np.linalg.norm(e), jax.tree_util.keystr(path)


def assert_same_bits(actual, expected):
  jax.tree.map(lambda a, e: np.testing.assert_array_equal(np.asarray(a), np.asarray(e)), *(
    (actual, expected)
  ))


@pytest.fixture(scope="module")
def one_device():
  return run(make_egad(**FULL))


@pytest.fixture(scope="module")
def vanilla():
  return run(make_vanilla_kd())


def test_the_problem_exercises_every_mechanism(one_device):
  _, metrics = one_device
  assert mean(metrics, "temperature_min") < 0.8
  assert mean(metrics, "temperature_max") > 1.2
  assert 0.1 < mean(metrics, "hard_fraction") < 0.9
  assert abs(mean(metrics, "weight_mean") - 1) > 1e-3
  assert mean(metrics, "feature_loss") > 0


@pytest.mark.parametrize(
  "shape", [(1, 8, 1, 1), (1, 2, 2, 2), (1, 1, 4, 2), (2, 1, 2, 2), (1, 1, 1, 8)]
)
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(shape, one_device):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
  method = make_egad(**FULL)
  state = initial_state(method)
  split = lambda config, params: sharding.place(
    params, sharding.parameter_shardings(mesh, make_model(config).logical_axes(), params)
  )
  whole = lambda tree: sharding.place(tree, jax.tree.map(lambda _: sharding.replicated(mesh), tree))
  params = {
    "student": split(STUDENT, state.params["student"]),
    "method": whole(state.params["method"]),
  }
  placed = TrainState(whole(state.step), params, TX.init(params), whole(state.method_state))
  actual, metrics = make_step(method, mesh=mesh)(
    placed, split(TEACHER, teacher_params()), sharding.place_batch(packed_batch(), mesh)
  )
  expected, expected_metrics = one_device
  assert_close(gradients(actual), gradients(expected), 1e-5)
  assert_close(metrics["loss"], expected_metrics["loss"], 1e-5)
  assert_same_bits(actual.method_state, expected.method_state)


def test_accumulated_micro_batches_equal_one_batch(one_device):
  batch = packed_batch()
  assert len(set(micro_batches(batch, 4).mask.sum((1, 2)).tolist())) == 4
  actual, metrics = run(make_egad(**FULL), batch, accumulation=4)
  expected, expected_metrics = one_device
  assert_close(gradients(actual), gradients(expected), 1e-6)
  assert metrics.keys() == expected_metrics.keys()
  assert_close(metrics, expected_metrics, 1e-6)
  assert_same_bits(actual.method_state, expected.method_state)


def test_masked_tokens_change_nothing(one_device):
  batch, rng = packed_batch(), np.random.default_rng(7)
  noise = rng.integers(0, VOCAB, batch.tokens.shape, dtype=np.int32)
  changed = batch._replace(
    tokens=np.where(batch.segment_ids == 0, noise, batch.tokens),
    labels=np.where(batch.mask, batch.labels, noise),
  )
  assert (changed.labels != batch.labels).any()
  assert (changed.tokens != batch.tokens).any()
  assert_same_bits(run(make_egad(**FULL), changed), one_device)


@pytest.mark.parametrize("ce_weight", [0.0, 0.5])
def test_all_off_in_the_config_is_vanilla_kd_bit_for_bit(ce_weight):
  config = tiny.get_config()
  config.loss.ce_weight = ce_weight
  config.temperature.base = 2.0
  config.curriculum.kind = "uniform"
  config.temperature.kind = "fixed"
  config.branch.weight = 0.0
  off = run(build.make_method(config))
  config.method = "vanilla_kd"
  assert_same_bits(off, run(build.make_method(config)))
  expected = run(make_vanilla_kd(temperature=2.0, ce_weight=ce_weight))
  assert_same_bits(off, expected)


def test_vanilla_kd_is_the_formula(vanilla):
  state, batch = initial_state(make_vanilla_kd()), packed_batch()
  student, teacher = make_model(STUDENT), make_model(TEACHER)

  def log_probabilities(model, params):
    hidden, _ = model.apply(params, batch.tokens, batch.positions, batch.segment_ids)
    return jax.nn.log_softmax(hidden @ model.unembedding(params).T)

  def loss(params):
    log_q = log_probabilities(student, params)
    log_p = log_probabilities(teacher, teacher_params())
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return jnp.sum(kl, where=batch.mask) / batch.mask.sum()

  value, expected = jax.jit(jax.value_and_grad(loss))(state.params["student"])
  actual, metrics = vanilla
  assert mean(metrics, "loss") == pytest.approx(float(value), rel=1e-5)
  assert_close(gradients(actual)["student"], expected, 1e-5)


# What each mechanism, alone, may change in the metrics of vanilla KD.
ALONE = {
  "curriculum": (Curriculum(), {"weight_mean", "distillation_loss", "loss", "grad_norm"}),
  "temperature": (
    Temperature(),
    {"temperature_mean", "temperature_min", "temperature_max"}
    | {"distillation_loss", "loss", "grad_norm"},
  ),
  "branch": (
    FULL["branch"],
    {"hard_fraction", "feature_loss", "hard_overflow", "loss", "grad_norm"},
  ),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_mechanism_alone_changes_only_its_own_terms(name, vanilla):
  options, own = ALONE[name]
  state, metrics = run(make_egad(**OFF | {name: options}))
  vanilla_state, expected = vanilla
  changed = {
    key
    for key in metrics
    if key not in expected or not np.allclose(metrics[key][0], expected[key][0], rtol=1e-6, atol=0)
  }
  # Nothing overflows in every batch; the key alone is the branch's.
  assert changed | {"hard_overflow"} == own | {"hard_overflow"}
  assert ("feature_loss" in metrics) == (name == "branch")
  assert mean(metrics, "hard_fraction") > 0 if name == "branch" else True
  assert bool(state.params["method"]) == (name == "branch")
  assert_same_bits(state.method_state, vanilla_state.method_state)


def test_the_branch_adds_the_feature_loss(vanilla):
  state, metrics = run(make_egad(**OFF | {"branch": FULL["branch"]}))
  _, expected = vanilla
  total = mean(expected, "loss") + mean(metrics, "feature_loss")
  assert mean(metrics, "loss") == pytest.approx(total, rel=1e-6)
  assert np.linalg.norm(gradients(state)["method"]["kernel"]) > 0


def test_a_neutral_curriculum_has_vanilla_gradients(vanilla):
  state, metrics = run(make_egad(**OFF | {"curriculum": Curriculum()}), progress=0.5)
  assert mean(metrics, "weight_mean") == 1
  assert_close(gradients(state), gradients(vanilla[0]), 1e-6)


def test_a_non_finite_update_is_withheld():
  method = make_egad(**FULL)
  state, teacher = initial_state(method), teacher_params()
  broken = teacher | {"embedding": teacher["embedding"].at[3, 4].set(jnp.nan)}
  step = make_step(method)
  after, metrics = step(state, broken, packed_batch())
  assert mean(metrics, "finite") == 0
  assert int(after.step) == 1
  assert_same_bits(after._replace(step=state.step), state)
  after, metrics = step(after, teacher, packed_batch())
  assert mean(metrics, "finite") == 1
  assert int(after.step) == 2
  assert not np.array_equal(after.method_state.mass, state.method_state.mass)


def test_micro_batches_keep_every_row_once():
  batch = packed_batch()
  split = micro_batches(batch, 4)
  assert split.tokens.shape == (4, 2, SEQ)
  for field, whole in zip(split, batch, strict=True):
    for m in range(4):
      np.testing.assert_array_equal(field[m], whole[m::4])
    np.testing.assert_array_equal(np.swapaxes(field, 0, 1).reshape(whole.shape), whole)


@pytest.mark.parametrize("filled", [True, False])
def test_an_empty_batch_changes_nothing(filled):
  method = make_egad(**FULL)
  state = initial_state(method, filled=filled)
  empty = jax.tree.map(np.zeros_like, packed_batch())
  after, metrics = make_step(method)(state, teacher_params(), empty)
  assert mean(metrics, "finite") == 1
  assert float(metrics["tokens"][0]) == 0
  assert isinstance(after.method_state, EntropyDistribution)
  assert_same_bits(after.method_state, state.method_state)
  assert_same_bits(after.params, state.params)


def test_student_and_teacher_differ_in_width():
  sizes = dataclasses.asdict(STUDENT), dataclasses.asdict(TEACHER)
  assert sizes[0]["dim"] != sizes[1]["dim"]
