"""The train step against itself: split, masked, sharded, switched off and broken."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import tiny
from egad_jax import device_arrays, from_config, sharding
from egad_jax.data.batches import Batch, shift
from egad_jax.head import distillation_head, head_on_mesh
from egad_jax.losses import Branch, Curriculum, Temperature
from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.methods.egad import make_egad, make_vanilla_kd
from egad_jax.methods.method import Context, Method
from egad_jax.models.config import DecoderConfig
from egad_jax.models.model import make_model
from egad_jax.sharding import micro_batches
from egad_jax.teachers import ColocatedTeacher
from egad_jax.training.guard import Guard
from egad_jax.training.objective import Metrics, make_objective
from egad_jax.training.state import Frozen, TrainState
from egad_jax.training.step import make_train_step

VOCAB, ROWS, SEQ = 64, 8, 16
STUDENT = DecoderConfig(
  vocab_size=VOCAB, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32
)
TEACHER = DecoderConfig(
  vocab_size=VOCAB, dim=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48
)
STUDENT_TAPS, TEACHER_TAPS = (1, 2), (1, 3)
PROGRESS, ELAPSED = 0.25, 0.5
# Fewer hard tokens than half, so that a row gathers its places.
FULL = {"ce_weight": 0.1, "branch": Branch(weight=1.0, hard_fraction=0.3)}
VANILLA = {"temperature": 2.0, "ce_weight": 0.5}
OFF = {"curriculum": None, "temperature": Temperature(kind="fixed", base=2.0), "branch": None}
OFF |= {"ce_weight": 0.5}
# sgd with momentum 0 keeps each gradient in its state: params - updated would round it away.
TX = optax.sgd(1.0, momentum=0.0)
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


jit_init = jax.jit(TX.init)


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


def random_params(config: DecoderConfig, seed: int, embedding_scale: float = 1.0):
  """Values as `init` makes them, drawn on the host: nothing to compile."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    values = rng.normal(size=leaf.shape).astype(np.float32)
    return 1 + 0.1 * values if path[-1].key == "scale" else 0.2 * values

  shapes = jax.eval_shape(make_model(config).init, jax.random.key(0))
  params = jax.tree.map_with_path(draw, shapes)
  return params | {"embedding": 0.1 * embedding_scale * params["embedding"]}


def teacher_params():
  # The scale spreads the teacher's entropies over several nats.
  return random_params(TEACHER, 1, embedding_scale=20.0)


def frozen() -> Frozen:
  return Frozen(teacher_params(), {})


def initial_state(method: Method, *, filled: bool = True) -> TrainState:
  params = {
    "student": random_params(STUDENT, 0),
    "method": method.init_params(
      jax.random.key(2),
      student_dim=STUDENT.dim,
      teacher_dim=TEACHER.dim,
      num_taps=len(STUDENT_TAPS),
    ),
  }
  state = method.init_state()
  if filled:
    entropies = np.linspace(0.0, np.log(VOCAB), 1000, dtype=np.float32)
    entropy = state.entropy.update(entropies, np.ones(1000, bool), half_life=1e6)
    state = state._replace(entropy=entropy)
  return TrainState(np.int32(0), params, jit_init(params), state, Guard.init())


def make_step(method: Method, *, accumulation: int = 1, mesh=None):
  constrain = sharding.constrain(mesh)
  taps = method.feature_loss is not None

  def make_head(loss):
    if mesh is None:
      return distillation_head(loss.function, chunk_size=8)
    axes = {"batch_axes": sharding.BATCH_AXES, "tensor_axis": sharding.TENSOR_AXIS}
    return head_on_mesh(loss.function, mesh, vocab_size=VOCAB, chunk_size=8, **axes)

  return jax.jit(
    make_train_step(
      objective=make_objective(
        student=make_model(STUDENT, constrain=constrain),
        teacher=ColocatedTeacher(
          make_model(TEACHER, constrain=constrain), mesh, taps=TEACHER_TAPS if taps else ()
        ),
        method=method,
        make_head=make_head,
        student_taps=STUDENT_TAPS if taps else (),
      ),
      method=method,
      tx=TX,
      learning_rate=optax.constant_schedule(1.0),
      context=lambda step, state: Context(state, jnp.float32(PROGRESS), jnp.float32(ELAPSED)),
      accumulation=accumulation,
    ),
    compiler_options=FAST_COMPILE,
  )


def run(method: Method, batch: Batch | None = None, **options) -> tuple[TrainState, Metrics]:
  batch = packed_batch() if batch is None else batch
  return make_step(method, **options)(initial_state(method), frozen(), batch)


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


def assert_whole_close(actual, expected, tolerance):
  """All leaves together to `tolerance` relative to their norm."""
  flat = lambda tree: np.concatenate(
    [np.ravel(x).astype(np.float64) for x in jax.tree.leaves(tree)]
  )
  error = np.linalg.norm(flat(actual) - flat(expected))
  assert error <= tolerance * np.linalg.norm(flat(expected))


def assert_same_bits(actual, expected):
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def full_step():
  return make_step(make_egad(**FULL))


@pytest.fixture(scope="module")
def one_device(full_step):
  return full_step(initial_state(make_egad(**FULL)), frozen(), packed_batch())


@pytest.fixture(scope="module")
def vanilla():
  return run(make_vanilla_kd(**VANILLA))


def test_the_problem_exercises_every_mechanism(one_device):
  _, metrics = one_device
  assert mean(metrics, "temperature_min") < 0.8
  assert mean(metrics, "temperature_max") > 1.2
  assert 0.1 < mean(metrics, "hard_fraction") < 0.9
  assert abs(mean(metrics, "weight_mean") - 1) > 1e-3
  assert mean(metrics, "feature_loss") > 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 2, 2), (1, 8, 1, 1), (1, 1, 4, 2)])
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(shape, one_device):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
  method = make_egad(**FULL)
  state = initial_state(method)
  split = lambda config, params: device_arrays.put(
    params, sharding.parameter_shardings(mesh, make_model(config).logical_axes(), params)
  )
  whole = lambda tree: device_arrays.put(
    tree, jax.tree.map(lambda _: sharding.replicated(mesh), tree)
  )
  params = {
    "student": split(STUDENT, state.trainable["student"]),
    "method": whole(state.trainable["method"]),
  }
  rest = whole((state.method_state, state.guard))
  placed = TrainState(whole(state.step), params, TX.init(params), *rest)
  actual, metrics = make_step(method, mesh=mesh)(
    placed,
    Frozen(split(TEACHER, teacher_params()), {}),
    sharding.device_put_batch(packed_batch(), mesh),
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
  assert_whole_close(gradients(actual), gradients(expected), 1e-6)
  # A leaf whose terms cancel, as those of the queries do, has only their rounding to share.
  assert_close(gradients(actual), gradients(expected), 5e-6)
  assert metrics.keys() == expected_metrics.keys()
  assert_close(metrics, expected_metrics, 1e-6)
  assert_same_bits(actual.method_state, expected.method_state)


def test_masked_tokens_change_nothing(full_step, one_device):
  batch, rng = packed_batch(), np.random.default_rng(7)
  noise = rng.integers(0, VOCAB, batch.tokens.shape, dtype=np.int32)
  changed = batch._replace(
    tokens=np.where(batch.segment_ids == 0, noise, batch.tokens),
    labels=np.where(batch.mask, batch.labels, noise),
  )
  assert (changed.labels != batch.labels).any()
  assert (changed.tokens != batch.tokens).any()
  state = initial_state(make_egad(**FULL))
  assert_same_bits(full_step(state, frozen(), changed), one_device)


def test_all_off_in_the_config_is_vanilla_kd_bit_for_bit(vanilla):
  config = tiny.get_config()
  config.loss.ce_weight = 0.5
  config.temperature.base = 2.0
  config.curriculum.kind = "uniform"
  config.temperature.kind = "fixed"
  config.branch.weight = 0.0
  assert_same_bits(run(from_config.make_method(config)), vanilla)


def test_vanilla_kd_is_the_formula(vanilla):
  state, batch = initial_state(make_vanilla_kd(**VANILLA)), packed_batch()
  student, teacher = make_model(STUDENT), make_model(TEACHER)

  def logits(model, params):
    hidden, _ = model.apply(params, batch.tokens, batch.positions, batch.segment_ids)
    return hidden @ model.unembedding(params).T

  def loss(params):
    q, p = logits(student, params), logits(teacher, teacher_params())
    log_q, log_p = jax.nn.log_softmax(q / 2), jax.nn.log_softmax(p / 2)
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(q, batch.labels)
    return jnp.sum(4 * kl + 0.5 * cross_entropy, where=batch.mask) / batch.mask.sum()

  run = jax.jit(jax.value_and_grad(loss), compiler_options=FAST_COMPILE)
  value, expected = run(state.trainable["student"])
  actual, metrics = vanilla
  assert mean(metrics, "loss") == pytest.approx(float(value), rel=1e-5)
  assert_close(gradients(actual)["student"], expected, 1e-5)


# What each mechanism, alone, may change in the metrics of vanilla KD.
ALONE = {
  "curriculum": (
    Curriculum(),
    {"curriculum_progress", "weight_mean", "distillation_loss", "loss", "grad_norm"},
  ),
  "temperature": (
    Temperature(base=2.0),
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
    if key not in expected or not np.allclose(metrics[key], expected[key], rtol=1e-6, atol=0)
  }
  assert changed == own
  assert expected.keys() <= metrics.keys()
  assert_same_bits(state.method_state, vanilla_state.method_state)
  assert bool(state.trainable["method"]) == (name == "branch")
  if name == "branch":
    total = mean(expected, "loss") + mean(metrics, "feature_loss")
    assert mean(metrics, "loss") == pytest.approx(total, rel=1e-6)
    assert np.linalg.norm(gradients(state)["method"]["kernel"]) > 0
  else:
    total = mean(metrics, "distillation_loss") + 0.5 * mean(metrics, "cross_entropy")
    assert mean(metrics, "loss") == pytest.approx(total, rel=1e-6)


def test_a_non_finite_update_is_withheld(full_step):
  state, teacher = initial_state(make_egad(**FULL)), frozen()
  embedding = teacher.teacher["embedding"].copy()
  embedding[3, 4] = np.nan
  broken = teacher._replace(teacher=teacher.teacher | {"embedding": embedding})
  after, metrics = full_step(state, broken, packed_batch())
  assert (mean(metrics, "finite"), mean(metrics, "skipped")) == (0, 1)
  assert int(after.step) == 1
  assert_same_bits(after._replace(step=state.step, guard=state.guard), state)
  after, metrics = full_step(after, teacher, packed_batch())
  assert (mean(metrics, "finite"), mean(metrics, "skipped")) == (1, 0)
  assert int(after.step) == 2
  assert not np.array_equal(after.method_state.entropy.mass, state.method_state.entropy.mass)


def test_micro_batches_keep_every_row_once():
  batch = packed_batch()
  split = micro_batches(batch, 4)
  assert split.tokens.shape == (4, 2, SEQ)
  for field, whole in zip(*map(jax.tree.leaves, (split, batch)), strict=True):
    for m in range(4):
      np.testing.assert_array_equal(field[m], whole[m::4])
    np.testing.assert_array_equal(np.swapaxes(field, 0, 1).reshape(whole.shape), whole)


@pytest.mark.parametrize("filled", [True, False])
def test_an_empty_batch_changes_nothing(filled, full_step):
  state = initial_state(make_egad(**FULL), filled=filled)
  empty = jax.tree.map(np.zeros_like, packed_batch())
  after, metrics = full_step(state, frozen(), empty)
  assert mean(metrics, "finite") == 1
  assert float(metrics["tokens"][0]) == 0
  assert isinstance(after.method_state.entropy, EntropyDistribution)
  assert_same_bits(after.method_state, state.method_state)
  assert_same_bits(after.trainable, state.trainable)
