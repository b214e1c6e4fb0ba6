"""The head of paired rows against whole rows of logits, for every size of chunk."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.data.batches import Batch, PairedBatch
from egad_jax.head.chunked import soft_capped
from egad_jax.head.paired import blocks_of_chunk, paired_head, sharded_paired_head
from egad_jax.head.span_blocks import cut_into_blocks
from egad_jax.losses import Curriculum, Temperature
from egad_jax.losses.spans import span_mask
from egad_jax.methods.method import Context
from egad_jax.methods.x_token import make_x_token
from tests.head.dense_spans import dense_span_loss

ROWS, SEQ, VS, VT, DS, DT = 3, 24, 29, 23, 5, 7
RNG = np.random.default_rng(0)
# Every third student token maps to one teacher token, which then has many entries.
IDS = np.where(np.arange(VS)[:, None] % 3, RNG.integers(0, VT - 2, (VS, 3)), 4).astype(np.int32)
WEIGHTS = RNG.dirichlet(np.ones(3), VS).astype(np.float32) * (np.arange(VS) != 7)[:, None]
PROJECTION = IDS, WEIGHTS
EGAD = {"curriculum": Curriculum(), "temperature": Temperature(base=1.5)}
make = functools.partial(make_x_token, projection=PROJECTION, teacher_top_k=9)


def random_spans(rng, sizes) -> np.ndarray:
  """int32 [SEQ], spans of random sizes with gaps; `sizes` fixes those of some spans."""
  spans, at = np.zeros(SEQ, np.int32), 0
  for number in range(1, SEQ + 1):
    at += int(rng.random() < 0.2)
    stop = at + sizes.get(number, int(rng.choice([1, 1, 1, 2, 3])))
    if stop > SEQ:
      break
    # A span that one side lacks does not count.
    spans[at:stop] = number * (rng.random() > 0.15 or number in sizes)
    at = stop
  return spans


def paired_batch() -> PairedBatch:
  """Rows with a span of 11 student tokens, one of 9 teacher tokens, and nothing to learn."""
  rng = np.random.default_rng(1)
  spans = [
    np.stack([random_spans(rng, {3: 11}), random_spans(rng, {}), np.zeros(SEQ, np.int32)]),
    np.stack([random_spans(rng, {3: 2}), random_spans(rng, {2: 9}), random_spans(rng, {})]),
  ]
  sides = [
    Batch(*(rng.integers(0, vocab, (ROWS, SEQ), np.int32),) * 4, mask=s > 0)
    for s, vocab in zip(spans, (VS, VT), strict=True)
  ]
  return PairedBatch(*sides, *spans)


def context_of(method) -> Context:
  state = method.init_state()
  entropies = np.linspace(0.0, np.log(VT), 1000, dtype=np.float32)
  entropy = state.entropy.update(entropies, np.ones(1000, bool), half_life=1e6)
  return Context(state._replace(entropy=entropy), jnp.float32(0.25), jnp.float32(0.5))


def arrays():
  rng = np.random.default_rng(2)
  draw = lambda scale, *shape: (scale * rng.normal(size=shape)).astype(np.float32)
  return (
    draw(1, ROWS, SEQ, DS),
    draw(1.5, VS + 2, DS),
    draw(1, ROWS, SEQ, DT),
    draw(1.5, VT + 1, DT),
  )


def dense_head(method, caps):
  """The head on all logits at once, with padding rows of the unembeddings cut."""
  of_row = dense_span_loss(method.loss)

  def head(
    student_hidden, student_unembedding, teacher_hidden, teacher_unembedding, batch, context
  ):
    student = soft_capped(student_hidden @ student_unembedding[:VS].T, caps[0])
    teacher = soft_capped(teacher_hidden @ teacher_unembedding[:VT].T, caps[1])
    loss, stats = jax.vmap(of_row, (0, 0, 0, 0, 0, None, 0))(
      student,
      teacher,
      batch.student.labels,
      batch.student_spans,
      batch.teacher_spans,
      context,
      batch.teacher.labels,
    )
    return jnp.sum(loss), stats

  return head


def value_and_gradients(head, method):
  run = jax.jit(jax.value_and_grad(head, argnums=(0, 1, 2, 3), has_aux=True))
  return jax.tree.map(np.asarray, run(*arrays(), paired_batch(), context_of(method)))


# The short form takes the first and the fourth, with small chunks.
VARIANTS = {
  "egad": (EGAD, (4.0, 3.0)),
  "p_kl": ({}, (None, None)),
  "all_entries": ({"teacher_top_k": None, "temperature": Temperature()}, (None, None)),
  "logprob": ({"span_average": "logprob", **EGAD}, (None, None)),
  "chain_rule": ({"span_average": "chain_rule", "ce_weight": 0.0, **EGAD}, (None, None)),
  "h_kl": ({"kind": "h_kl"}, (None, 3.0)),
}


@pytest.mark.short_form(2)
@pytest.mark.parametrize("chunk_size", [4, None])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_whole_rows_in_value_gradient_and_stats(variant, chunk_size):
  options, caps = VARIANTS[variant]
  method = make(**options)
  head = paired_head(
    method.loss,
    student_vocab_size=VS,
    teacher_vocab_size=VT,
    student_soft_cap=caps[0],
    teacher_soft_cap=caps[1],
    chunk_size=chunk_size,
  )
  (loss, stats), gradients = value_and_gradients(head, method)
  (expected, expected_stats), expected_gradients = value_and_gradients(
    dense_head(method, caps), method
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  mask = np.asarray(span_mask(paired_batch().student_spans, paired_batch().teacher_spans))
  assert stats.keys() == expected_stats.keys()
  for name, stat in stats.items():
    np.testing.assert_allclose(stat, expected_stats[name], rtol=2e-5, atol=2e-6, err_msg=name)
    np.testing.assert_array_equal(stat[~mask], 0)
  for gradient, wanted in zip(gradients, expected_gradients, strict=True):
    error = np.linalg.norm(gradient - wanted)
    assert error <= 1e-6 * np.linalg.norm(wanted), error / np.linalg.norm(wanted)


def test_blocks_hold_every_pair_once_and_long_ones_apart():
  batch = paired_batch()
  mask = np.asarray(span_mask(batch.student_spans, batch.teacher_spans))
  for size in (1, 2, 4, 10, SEQ):
    layout = jax.jit(functools.partial(cut_into_blocks, size=size, multiple=3))(
      batch.student_spans, batch.teacher_spans
    )
    layout = jax.tree.map(np.asarray, layout)
    starts, count = layout.starts, int(layout.num_blocks)
    assert starts[0] == 0
    assert (np.diff(starts[: count + 1]) > 0).all()
    assert (starts[count:] == mask.sum()).all()
    np.testing.assert_array_equal(layout.mask_indices[: mask.sum()], np.flatnonzero(mask))
    pairs = [
      [np.sum(spans[row] == column + 1) for spans in (batch.student_spans, batch.teacher_spans)]
      for row, column in np.argwhere(mask)
    ]
    long = np.flatnonzero(np.max(pairs, axis=1) > size)
    np.testing.assert_array_equal(layout.long_pairs[: int(layout.num_long)], long)
    for i in range(count):
      inside = np.arange(starts[i], starts[i + 1])
      assert len(np.unique(layout.mask_indices[inside] // SEQ)) == 1
      assert layout.is_long[i] == (inside[0] in long)
      if layout.is_long[i]:
        assert len(inside) == 1
      else:
        assert np.sum([pairs[j] for j in inside], axis=0).max() <= size


@pytest.mark.slow
def test_a_long_row_never_has_all_its_logits():
  """Neither the traced nor the compiled program holds an array of a row's logits or larger."""
  seq, vocab, chunk = 512, 300, 16
  projection = np.arange(vocab, dtype=np.int32)[:, None], np.ones((vocab, 1), np.float32)
  method = make_x_token(projection=projection, teacher_top_k=40, **EGAD)
  head = paired_head(
    method.loss, student_vocab_size=vocab, teacher_vocab_size=vocab, chunk_size=chunk
  )
  shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
  ints = shape(1, seq, dtype=jnp.int32)
  side = Batch(*(ints,) * 4, mask=shape(1, seq, dtype=bool))
  arguments = (shape(1, seq, 4), shape(vocab, 4), shape(1, seq, 4), shape(vocab, 4))
  run = jax.jit(jax.grad(head, argnums=(0, 1), has_aux=True))
  compiled = run.lower(*arguments, PairedBatch(side, side, ints, ints), context_of(method))
  text = compiled.compile().as_text()
  sizes = [
    np.prod([int(n) for n in found.split(",")])
    for found in re.findall(r"\b(?:f32|bf16|pred|s32|u8)\[([\d,]+)\]", text)
  ]
  assert chunk * vocab <= max(sizes) < seq * vocab / 4


def test_the_value_alone_and_on_several_devices():
  method = make()
  head = paired_head(method.loss, student_vocab_size=VS, teacher_vocab_size=VT, chunk_size=8)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:ROWS]), ("rows",))
  inputs = (*arrays(), paired_batch(), context_of(method))

  @jax.jit
  def run(inputs):
    on_devices = sharded_paired_head(head, mesh, batch_axes=("rows",))
    return head(*inputs), on_devices(*inputs), dense_head(method, (None, None))(*inputs)[0]

  (value, stats), (on_devices, their_stats), expected = run(inputs)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(on_devices, expected, rtol=1e-6)
  for name, stat in stats.items():
    np.testing.assert_allclose(their_stats[name], stat, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_matmuls_run_in_the_dtype_of_the_hidden_states_and_add_up_in_float32():
  method = make()
  head = paired_head(method.loss, student_vocab_size=VS, teacher_vocab_size=VT, chunk_size=8)
  half = lambda x: jnp.asarray(x, jnp.bfloat16)
  inputs = arrays()
  rounded = [half(x).astype(np.float32) for x in inputs]

  @jax.jit
  def run(student, student_weight, teacher, teacher_weight):
    rest = (paired_batch(), context_of(method))
    return head(student, student_weight, teacher, teacher_weight, *rest)[0]

  found = run(half(inputs[0]), inputs[1], half(inputs[2]), inputs[3])
  assert found == run(half(inputs[0]), rounded[1], half(inputs[2]), rounded[3])
  np.testing.assert_allclose(found, run(*rounded), rtol=1e-5)


def test_the_gradient_of_a_long_span_is_not_rounded():
  method = make()
  head = paired_head(method.loss, student_vocab_size=VS, teacher_vocab_size=VT, chunk_size=1)
  half = lambda x: jnp.asarray(x, jnp.bfloat16)
  student, student_weight, teacher, teacher_weight = arrays()
  batch = paired_batch()
  only = lambda spans: np.where((spans == 3) & (np.arange(ROWS)[:, None] == 0), spans, 0)
  batch = batch._replace(
    student_spans=only(batch.student_spans), teacher_spans=only(batch.teacher_spans)
  )

  def loss_of(hidden, weight):
    rest = (half(teacher), teacher_weight, batch, context_of(method))
    return head(hidden, weight, *rest)[0]

  gradients = jax.jit(jax.grad(loss_of, argnums=(0, 1)))
  of_hidden, gradient = gradients(half(student), student_weight)
  assert of_hidden.dtype == jnp.bfloat16
  assert np.any(gradient != 0)
  assert np.any(gradient != half(gradient).astype(np.float32))


def test_a_block_has_at_most_128_tokens():
  assert blocks_of_chunk(128, 8192, 1000) == (1, 128)
  assert blocks_of_chunk(129, 8192, 1000) == (2, 64)
  assert blocks_of_chunk(7, 5, 1000) == (1, 5)
