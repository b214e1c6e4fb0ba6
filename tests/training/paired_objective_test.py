"""The objective of paired rows against plain formulas, and split, masked and sharded."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import device_arrays, sharding
from egad_jax.data.batches import Batch, PairedBatch, empty_row, shift_pair, stack
from egad_jax.head import distillation_head
from egad_jax.head.paired import paired_head, sharded_paired_head
from egad_jax.losses.spans import span_mask
from egad_jax.losses.temperature import Temperature
from egad_jax.methods.egad import make_vanilla_kd
from egad_jax.methods.method import Context, Method
from egad_jax.methods.x_token import make_x_token
from egad_jax.models.config import DecoderConfig
from egad_jax.models.model import make_model
from egad_jax.teachers import ColocatedTeacher
from egad_jax.training import evaluation
from egad_jax.training.guard import Guard
from egad_jax.training.objective import make_objective
from egad_jax.training.state import Frozen, TrainState
from egad_jax.training.step import make_train_step
from tests.head.dense_spans import dense_span_loss
from tests.training.step_test import (
  FAST_COMPILE,
  TX,
  assert_close,
  assert_same_bits,
  assert_whole_close,
  gradients,
  mean,
  packed_batch,
  random_params,
)

ROWS, SEQ = 8, 16
# Sizes of the tokenizers; each unembedding has two more rows of padding.
STUDENT_VOCAB, TEACHER_VOCAB = 40, 60
SIZES = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 32}
STUDENT = DecoderConfig(
  vocab_size=STUDENT_VOCAB + 2, dim=16, num_layers=2, logit_soft_cap=5.0, **SIZES
)
TEACHER = DecoderConfig(
  vocab_size=TEACHER_VOCAB + 2, dim=24, num_layers=3, logit_soft_cap=8.0, **SIZES
)
RNG = np.random.default_rng(3)
PROJECTION = (
  RNG.integers(0, TEACHER_VOCAB, (STUDENT_VOCAB, 3)).astype(np.int32),
  RNG.dirichlet(np.ones(3), STUDENT_VOCAB).astype(np.float32),
)
METHOD = make_x_token(
  projection=PROJECTION, temperature=Temperature(), teacher_top_k=50, ce_weight=0.1
)

jit = functools.partial(jax.jit, compiler_options=FAST_COMPILE)


def paired_row(rng, length: int) -> PairedBatch:
  """A row of two segments of random spans, at most `length` tokens long on either side."""
  fields = np.zeros((2, 4, SEQ + 1), np.int32)
  ends = np.zeros(2, int)
  for segment in (1, 2):
    for span in range(int(rng.integers(2, 6))):
      # The first span is context.
      sizes = rng.integers(1, 4, 2)
      if (ends + sizes > length).any():
        break
      for side, vocab in enumerate((STUDENT_VOCAB, TEACHER_VOCAB)):
        place = slice(ends[side], ends[side] + sizes[side])
        fields[side, 0, place] = rng.integers(0, vocab, sizes[side])
        fields[side, 1, place] = segment
        fields[side, 3, place] = span
      ends += sizes
    for side in fields:
      side[2, side[1] == segment] = np.arange(np.sum(side[1] == segment))
  return shift_pair(*fields)._replace(row_numbers=np.int32(0))


@functools.cache
def paired_batch(seed: int = 0) -> PairedBatch:
  """Rows of very different padding; the last one trains nothing."""
  rng = np.random.default_rng(seed)
  lengths = (17, 17, 5, 12, 17, 9, 3)
  return stack([*(paired_row(rng, n) for n in lengths), empty_row(SEQ, sides=2)])


def student_params():
  return random_params(STUDENT, 0, embedding_scale=5.0)


def teacher_params():
  return random_params(TEACHER, 1, embedding_scale=20.0)


def frozen():
  return Frozen(teacher_params(), {})


def make_head(loss, mesh=None):
  head = paired_head(
    loss,
    student_vocab_size=STUDENT_VOCAB,
    teacher_vocab_size=TEACHER_VOCAB,
    student_soft_cap=STUDENT.logit_soft_cap,
    teacher_soft_cap=TEACHER.logit_soft_cap,
  )
  if mesh is None:
    return head
  return sharded_paired_head(head, mesh, batch_axes=sharding.BATCH_AXES)


def objective_of(method: Method, mesh=None):
  constrain = sharding.constrain(mesh)
  return make_objective(
    student=make_model(STUDENT, constrain=constrain),
    teacher=ColocatedTeacher(make_model(TEACHER, constrain=constrain), mesh),
    method=method,
    make_head=functools.partial(make_head, mesh=mesh),
  )


def context_of(method: Method) -> Context:
  state = method.init_state()
  entropies = np.linspace(0.0, np.log(TEACHER_VOCAB), 1000, dtype=np.float32)
  entropy = state.entropy.update(entropies, np.ones(1000, bool), half_life=1e6)
  return Context(state._replace(entropy=entropy), jnp.float32(0.25), jnp.float32(0.5))


def make_step(mesh=None, accumulation=1):
  context = context_of(METHOD)
  return jit(
    make_train_step(
      objective=objective_of(METHOD, mesh),
      method=METHOD,
      tx=TX,
      learning_rate=lambda step: 1.0,
      context=lambda step, state: context._replace(state=state),
      accumulation=accumulation,
    )
  )


def initial_state() -> TrainState:
  params = {"student": student_params(), "method": {}}
  state = context_of(METHOD).state
  return TrainState(jnp.int32(0), params, TX.init(params), state, Guard.init())


@pytest.fixture(scope="module")
def one_step():
  return make_step()


@pytest.fixture(scope="module")
def one_device(one_step):
  return one_step(initial_state(), frozen(), paired_batch())


def logits_of(config, params, side: Batch, vocab: int):
  model = make_model(config)
  hidden, _ = model.apply(params, side.tokens, side.positions, side.segment_ids)
  logits = hidden @ model.unembedding(params).T[:, :vocab]
  return config.logit_soft_cap * jnp.tanh(logits / config.logit_soft_cap)


def nats_of(config, params, side: Batch, vocab: int):
  """The cross-entropy of every place."""
  log_q = jit(lambda p: jax.nn.log_softmax(logits_of(config, p, side, vocab)))(params)
  return -np.take_along_axis(np.asarray(log_q), side.labels[..., None], -1)[..., 0]


def test_the_problem_has_spans_of_many_kinds():
  batch = paired_batch()
  assert batch.student.mask.sum() != batch.teacher.mask.sum()
  for spans in (batch.student_spans, batch.teacher_spans):
    assert (np.diff(spans)[spans[:, 1:] > 0] == 0).any()
  counts = span_mask(batch.student_spans, batch.teacher_spans).sum(axis=1)
  assert counts[-1] == 0
  assert len(set(counts.tolist())) > 4


def test_the_loss_is_the_sum_of_the_spans_of_all_rows(one_device):
  batch, context = paired_batch(), context_of(METHOD)
  mask = np.asarray(span_mask(batch.student_spans, batch.teacher_spans))

  def loss(params):
    teacher_logits = logits_of(TEACHER, teacher_params(), batch.teacher, TEACHER_VOCAB)
    student_logits = logits_of(STUDENT, params, batch.student, STUDENT_VOCAB)
    per_span, stats = jax.vmap(dense_span_loss(METHOD.loss), in_axes=(0, 0, 0, 0, 0, None))(
      student_logits,
      teacher_logits,
      batch.student.labels,
      batch.student_spans,
      batch.teacher_spans,
      context,
    )
    return jnp.sum(per_span, where=mask) / mask.sum(), stats

  (value, stats), expected = jit(jax.value_and_grad(loss, has_aux=True))(student_params())
  actual, metrics = one_device
  assert mean(metrics, "loss") == pytest.approx(float(value), rel=1e-5)
  assert_close(gradients(actual)["student"], expected, 2e-5)
  entropy = float(np.mean(stats["teacher_entropy"], where=mask))
  assert mean(metrics, "teacher_entropy") == pytest.approx(entropy, rel=1e-5)


def test_tokens_and_cross_entropy_are_of_the_students_tokens(one_device):
  batch, metrics = paired_batch(), one_device[1]
  total, count = metrics["tokens"]
  assert (float(total), float(count)) == (batch.student.mask.sum(), 0)
  nats = nats_of(STUDENT, student_params(), batch.student, STUDENT_VOCAB)
  assert mean(metrics, "cross_entropy") == pytest.approx(nats[batch.student.mask].mean(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 2, 2), (1, 8, 1, 1)])
def test_a_mesh_gives_the_loss_and_gradients_of_one_device(shape, one_device):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
  state = initial_state()
  split = lambda config, params: device_arrays.put(
    params, sharding.parameter_shardings(mesh, make_model(config).logical_axes(), params)
  )
  whole = lambda tree: device_arrays.put(
    tree, jax.tree.map(lambda _: sharding.replicated(mesh), tree)
  )
  params = {"student": split(STUDENT, state.trainable["student"]), "method": {}}
  rest = whole((state.method_state, state.guard))
  placed = TrainState(whole(state.step), params, TX.init(params), *rest)
  actual, metrics = make_step(mesh)(
    placed,
    Frozen(split(TEACHER, teacher_params()), {}),
    sharding.device_put_batch(paired_batch(), mesh),
  )
  expected, expected_metrics = one_device
  assert_close(gradients(actual), gradients(expected), 1e-5)
  assert_close(metrics, expected_metrics, 1e-5)
  assert_close(actual.method_state, expected.method_state, 1e-6)


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_batch(one_device):
  actual, metrics = make_step(accumulation=4)(initial_state(), frozen(), paired_batch())
  expected, expected_metrics = one_device
  assert_whole_close(gradients(actual), gradients(expected), 1e-6)
  assert_close(gradients(actual), gradients(expected), 5e-6)
  assert metrics.keys() == expected_metrics.keys()
  assert_close(metrics, expected_metrics, 1e-6)
  assert_close(actual.method_state, expected.method_state, 1e-6)


def test_masked_places_change_nothing(one_step, one_device):
  rng = np.random.default_rng(7)

  def noisy(side: Batch, vocab: int) -> Batch:
    noise = rng.integers(0, vocab, side.tokens.shape, dtype=np.int32)
    return side._replace(
      tokens=np.where(side.segment_ids == 0, noise, side.tokens),
      labels=np.where(side.mask, side.labels, noise),
    )

  batch = paired_batch()
  changed = batch._replace(
    student=noisy(batch.student, STUDENT_VOCAB), teacher=noisy(batch.teacher, TEACHER_VOCAB)
  )
  assert_same_bits(one_step(initial_state(), frozen(), changed), one_device)


def test_an_empty_batch_changes_nothing(one_step):
  state = initial_state()
  after, metrics = one_step(state, frozen(), jax.tree.map(np.zeros_like, paired_batch()))
  assert mean(metrics, "finite") == 1
  assert float(metrics["tokens"][0]) == 0
  assert_same_bits(after.method_state, state.method_state)
  assert_same_bits(after.trainable, state.trainable)


def head_arguments():
  rng, batch = np.random.default_rng(5), paired_batch()
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return [
    draw(ROWS, SEQ, STUDENT.dim),
    draw(STUDENT.vocab_size, STUDENT.dim),
    draw(ROWS, SEQ, TEACHER.dim),
    draw(TEACHER.vocab_size, TEACHER.dim),
    batch,
    context_of(METHOD),
  ]


@pytest.fixture(scope="module")
def head_gradient():
  """Loss, stats and gradient by both hidden states and unembeddings."""
  return jit(jax.value_and_grad(make_head(METHOD.loss), argnums=(0, 1, 2, 3), has_aux=True))


def test_hidden_states_that_predict_nothing_change_nothing(head_gradient):
  arguments = head_arguments()
  expected = head_gradient(*arguments)
  batch = arguments[4]
  for i, spans in ((0, batch.student_spans), (2, batch.teacher_spans)):
    arguments[i] = np.where((spans > 0)[..., None], arguments[i], np.nan)
  assert_same_bits(head_gradient(*arguments), expected)


def test_gradient_flows_to_the_student_and_not_to_padding(head_gradient):
  _, (hidden, unembedding, *teacher) = head_gradient(*head_arguments())
  mask = paired_batch().student.mask
  assert np.any(np.asarray(hidden), axis=-1)[mask].all()
  assert not np.any(np.asarray(hidden)[~mask])
  assert np.any(np.asarray(unembedding)[:STUDENT_VOCAB])
  assert not np.any(np.asarray(unembedding)[STUDENT_VOCAB:])
  assert not any(np.any(np.asarray(x)) for x in teacher)


def same_sides(batch: Batch) -> PairedBatch:
  spans = np.where(batch.mask, np.cumsum(batch.mask, axis=1), 0).astype(np.int32)
  return PairedBatch(batch, batch, spans, spans)


@pytest.mark.slow
def test_one_tokenizer_for_both_is_vanilla_kd():
  """Spans of one token and the identity for a projection: loss, gradient and evaluation."""
  vocab = 64
  student, teacher = (
    DecoderConfig(vocab_size=vocab, dim=dim, num_layers=1, **SIZES) for dim in (16, 24)
  )
  params = {"student": random_params(student, 0), "method": {}}
  other = random_params(teacher, 1, embedding_scale=20.0)
  identity = (np.arange(vocab, dtype=np.int32)[:, None], np.ones((vocab, 1), np.float32))
  fixed = Temperature(kind="fixed", base=2.0)
  x_token = make_x_token(projection=identity, temperature=fixed, teacher_top_k=None, ce_weight=0.5)
  vanilla = make_vanilla_kd(temperature=2.0, ce_weight=0.5)
  context, models = context_of(vanilla), (make_model(student), make_model(teacher))
  both = {"student": models[0], "teacher": ColocatedTeacher(models[1], None)}
  head = functools.partial(paired_head, student_vocab_size=vocab, teacher_vocab_size=vocab)
  span_objective = make_objective(**both, method=x_token, make_head=head)
  token_head = lambda loss: distillation_head(loss.function)
  token_objective = make_objective(**both, method=vanilla, make_head=token_head)
  sums = [
    evaluation.make_sums(statistics, vocab)
    for statistics in (
      evaluation.make_statistics(**both, head=head(evaluation.evaluation_loss(x_token.loss))),
      evaluation.make_statistics(**both, head=token_head(evaluation.evaluation_loss(vanilla.loss))),
    )
  ]

  def everything(objective, sums, batch):
    @jit
    def program():
      value = jax.value_and_grad(lambda p: objective(p, Frozen(other, {}), batch, context)[0])(
        params
      )
      return value, sums(params, Frozen(other, {}), batch, context)

    return program()

  actual, found = everything(span_objective, sums[0], same_sides(packed_batch()))
  expected, wanted = everything(token_objective, sums[1], packed_batch())
  assert_close(actual, expected, 1e-5)
  assert found.keys() == wanted.keys()
  assert_close(found, wanted, 1e-5)


@pytest.mark.slow
def test_an_evaluation_is_per_token_of_each_model_and_over_the_same_bytes():
  batch, context = paired_batch(), context_of(METHOD)
  statistics = evaluation.make_statistics(
    student=make_model(STUDENT),
    teacher=ColocatedTeacher(make_model(TEACHER), None),
    head=make_head(evaluation.evaluation_loss(METHOD.loss)),
  )
  sums = jit(evaluation.make_sums(statistics, TEACHER_VOCAB))
  size = 1234
  result = evaluation.evaluate(
    lambda part: sums({"student": student_params()}, frozen(), part, context),
    [batch, batch],
    vocab_size=TEACHER_VOCAB,
    num_bytes=size,
  )
  for who, config, params, side, vocab in (
    ("student", STUDENT, student_params(), batch.student, STUDENT_VOCAB),
    ("teacher", TEACHER, teacher_params(), batch.teacher, TEACHER_VOCAB),
  ):
    nats = nats_of(config, params, side, vocab)[side.mask]
    assert result[who]["cross_entropy"] == pytest.approx(nats.mean(), rel=1e-5)
    bits = 2 * nats.sum() / np.log(2) / size
    assert result[who]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
  spans = int(span_mask(batch.student_spans, batch.teacher_spans).sum())
  assert result["tokens"] == 2 * batch.student.mask.sum()
  assert sum(result["entropy_bins"]["count"]) == 2 * spans
