"""Tests of the attention of packed rows: masks, and each implementation against plain XLA.

Kernels run interpreted, or are compiled for devices that are not there.
"""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import sharding
from egad_jax.chips import topology
from egad_jax.models import cudnn, splash
from egad_jax.models.architectures import architecture
from egad_jax.models.attention import (
  PLAIN_LOGITS,
  XLA,
  AttentionLogits,
  cached_mask,
  masked_attention,
  packed_mask,
)
from egad_jax.models.config import LayerKind
from egad_jax.models.cudnn import cudnn_attention
from egad_jax.models.model import make_model
from egad_jax.models.splash import splash_attention
from egad_jax.planning.environment import prepare_environment
from egad_jax.planning.plan import devices_of

SEQ = 256


def test_packed_mask_is_causal_within_segments():
  segments = jnp.array([[1, 1, 2, 2, 2, 0]])
  positions = jnp.array([[0, 1, 0, 1, 2, 0]])
  wanted = np.array(
    [
      [1, 0, 0, 0, 0, 0],
      [1, 1, 0, 0, 0, 0],
      [0, 0, 1, 0, 0, 0],
      [0, 0, 1, 1, 0, 0],
      [0, 0, 1, 1, 1, 0],
      [0, 0, 0, 0, 0, 1],
    ]
  )
  np.testing.assert_array_equal(packed_mask(positions, segments)[0, 0], wanted)


def test_packed_mask_with_a_window():
  positions = jnp.arange(4)[None]
  mask = packed_mask(positions, jnp.ones((1, 4), jnp.int32), window=2)
  wanted = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
  np.testing.assert_array_equal(mask[0, 0], wanted)


def test_cached_mask_skips_empty_places():
  keys = jnp.array([[0, 1, -1, 2, -1]])
  mask = cached_mask(jnp.array([[1, 2]]), keys)
  np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0, 0, 0], [1, 1, 0, 1, 0]])
  mask = cached_mask(jnp.array([[1, 2]]), keys, window=2)
  np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0, 0, 0], [0, 1, 0, 1, 0]])


@pytest.fixture
def small_blocks(monkeypatch):
  """Several blocks in a short row."""
  monkeypatch.setattr(splash, "_LARGEST_BLOCK", 128)


def packed_rows(lengths=((100, 90, 66), (31, 200, 25))):
  """(positions, segment_ids): two documents and a tail a row, none cut where blocks are."""
  positions = [np.concatenate([np.arange(n) for n in row]) for row in lengths]
  segments = [np.repeat([1, 2, 0], row) for row in lengths]
  return np.asarray(positions, np.int32), np.asarray(segments, np.int32)


def projections(*, heads, kv_heads, head_dim=16, rows=2, dtype=jnp.float32):
  """(query, key, value), large enough that a wrong scale shows."""
  rng = np.random.default_rng(0)
  shapes = [(rows, SEQ, n, head_dim) for n in (heads, kv_heads, kv_heads)]
  return tuple((2 * rng.standard_normal(shape, np.float32)).astype(dtype) for shape in shapes)


def output_and_gradients(attention, rows, **logits):
  """A compiled function of (query, key, value) and the weight of each output in the objective."""

  def objective(arrays, weight):
    how = AttentionLogits(**logits)
    out = attention.attend(*arrays, attention.prepare(*rows, how.window), how)
    return jnp.sum(jnp.sin(out.astype(jnp.float32)) * weight), out

  run = jax.jit(jax.value_and_grad(objective, has_aux=True))

  def both(arrays, weight):
    (_, out), gradients = run(arrays, weight)
    return [np.asarray(x) for x in (out, *gradients)]

  return both


def value_and_gradients(attention, arrays, rows, **logits):
  return output_and_gradients(attention, rows, **logits)(arrays, np.float32(1))


def assert_close(got, wanted, *, atol):
  for name, a, b in zip(("output", "query", "key", "value"), got, wanted, strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(
      np.float32(a), np.float32(b), atol=atol * max(1, np.abs(b).max()), err_msg=name
    )


@pytest.mark.short_form(2)
@pytest.mark.parametrize(
  ("kv_heads", "logits"),
  [
    (2, {}),
    (2, {"window": 40, "soft_cap": 3.0, "scale": 0.3}),
    (4, {}),
    (1, {"window": 40}),
    (1, {"soft_cap": 3.0}),
    (4, {"window": 40, "scale": 0.1}),
  ],
)
def test_splash_equals_xla_in_value_and_gradient(small_blocks, kv_heads, logits):
  arrays, rows = projections(heads=4, kv_heads=kv_heads), packed_rows()
  kernel = splash_attention(interpret=True)
  got = value_and_gradients(kernel, arrays, rows, **logits)
  assert_close(got, value_and_gradients(XLA, arrays, rows, **logits), atol=1e-5)


def test_soft_cap_and_scale_of_xla():
  """Against the formula in loops over heads and queries."""
  query, key, value = (x[:, :9] for x in projections(heads=3, kv_heads=1, rows=1))
  mask = np.tri(9, dtype=bool)[None, None]
  how = AttentionLogits(scale=0.3, soft_cap=2.0)
  got = np.asarray(masked_attention(query, key, value, mask, how))
  for head in range(3):
    for i in range(9):
      logits = 2.0 * np.tanh(0.3 * key[0, : i + 1, 0] @ query[0, i, head] / 2.0)
      weights = np.exp(logits) / np.exp(logits).sum()
      np.testing.assert_allclose(got[0, i, head], weights @ value[0, : i + 1, 0], atol=1e-5)


def test_bfloat16_splash_is_about_as_exact_as_xla(small_blocks):
  """Splash rounds once more than XLA, the scaled query, and so may err a little more."""
  rows, sizes = packed_rows(), {"heads": 4, "kv_heads": 2, "head_dim": 24}
  exact = value_and_gradients(XLA, projections(**sizes), rows)

  def errors(attention):
    got = value_and_gradients(attention, projections(**sizes, dtype=jnp.bfloat16), rows)
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    norm = np.linalg.norm
    return [norm(np.float32(a) - b) / norm(b) for a, b in zip(got, exact, strict=True)]

  for ours, theirs in zip(errors(splash_attention(interpret=True)), errors(XLA), strict=True):
    assert ours < 1.5 * theirs < 0.1


@pytest.mark.parametrize("attention", [XLA, splash_attention(interpret=True)], ids=lambda a: a.name)
def test_logits_are_scaled_once(small_blocks, attention):
  query, key, value = projections(heads=2, kv_heads=1, head_dim=24)
  positions, segments = packed_rows()
  run = jax.jit(
    lambda *x: attention.attend(*x, attention.prepare(positions, segments, None), PLAIN_LOGITS)
  )
  out, segments = np.asarray(run(query, key, value)), np.asarray(segments)
  place = 150
  seen = np.flatnonzero((segments[0] == segments[0, place]) & (np.arange(SEQ) <= place))
  for head in range(2):
    logits = np.float64(key[0, seen, 0]) @ np.float64(query[0, place, head]) / np.sqrt(24)
    weights = np.exp(logits - logits.max())
    wanted = weights / weights.sum() @ np.float64(value[0, seen, 0])
    np.testing.assert_allclose(out[0, place, head], wanted, atol=1e-5)


@pytest.mark.parametrize("attention", [XLA, splash_attention(interpret=True)], ids=lambda a: a.name)
def test_no_segment_sees_another(small_blocks, attention):
  """Not even values that would outweigh everything; NaN would spread by 0 * NaN, masked or not."""
  arrays, rows = projections(heads=4, kv_heads=2), packed_rows()
  run, segments = output_and_gradients(attention, rows), np.asarray(rows[1])[:, :, None, None]
  for poisoned in (1, 2, 0):
    inside = segments == poisoned
    # Outputs of the poisoned segment have no part in the objective.
    weight = np.where(inside, np.float32(0), np.float32(1))
    clean = run(arrays, weight)
    for gradient in clean[1:]:
      assert not np.any(np.where(inside, gradient, 0))
    for poison in (1e12, -1e12):
      dirty = run(tuple(np.where(inside, np.float32(poison), x) for x in arrays), weight)
      for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(
          np.where(inside, 0, a), np.where(inside, 0, b), err_msg=f"{poison} in {poisoned}"
        )


@pytest.mark.short_form(2)
@pytest.mark.parametrize(
  ("shape", "heads", "kv_heads"),
  [
    ((2, 1, 2, 2), 4, 2),  # Key heads divide.
    ((1, 1, 2, 4), 8, 2),  # Only query heads do: key heads are repeated.
    ((1, 2, 1, 4), 6, 3),  # Neither: repeated work.
    ((1, 1, 8, 1), 4, 2),  # Not even the rows do.
  ],
)
def test_splash_on_a_mesh_equals_xla(small_blocks, shape, heads, kv_heads):
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
  arrays = projections(heads=heads, kv_heads=kv_heads, head_dim=8, rows=4)
  rows = tuple(np.concatenate([x, x[::-1]]) for x in map(np.asarray, packed_rows()))
  got = value_and_gradients(splash_attention(mesh, interpret=True), arrays, rows)
  assert_close(got, value_and_gradients(XLA, arrays, rows), atol=1e-5)


def small_decoder(**changes):
  pattern = (LayerKind(), LayerKind(window=50))
  sizes = {"num_layers": 2, "max_seq_len": 4096, "pattern": pattern}
  return dataclasses.replace(architecture("tiny"), **sizes | changes)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "none"])
def test_a_decoder_with_splash_equals_one_without(small_blocks, remat):
  config = small_decoder()
  positions, segments = packed_rows()
  tokens = np.random.default_rng(1).integers(0, config.vocab_size, positions.shape, np.int32)
  params = jax.jit(make_model(config).init)(jax.random.key(2))
  documents = (np.asarray(segments) > 0)[:, :, None]

  def run(attention):
    model = make_model(config, remat=remat, attention=attention)

    def objective(p):
      hidden, taps = model.apply(p, tokens, positions, segments, taps=(2,))
      hidden = jnp.where(documents, hidden, 0)
      return jnp.sum(jnp.sin(hidden)) + jnp.sum(jnp.where(documents, taps[0], 0) ** 2), hidden

    (_, hidden), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    return hidden, gradients

  got, wanted = run(splash_attention(interpret=True)), run(XLA)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max())), got, wanted
  )


@pytest.mark.slow
def test_initial_values_and_decoding_do_not_depend_on_the_attention():
  config = small_decoder()
  plain, kernel = make_model(config), make_model(config, attention=splash_attention())
  params, others = (jax.jit(m.init)(jax.random.key(0)) for m in (plain, kernel))
  jax.tree.map(np.testing.assert_array_equal, params, others)
  tokens, positions = jnp.array([[3, 4, 5]]), jnp.arange(3)[None]
  wanted, _ = plain.decode(params, tokens, positions, plain.init_cache(1, 8))
  got, _ = kernel.decode(params, tokens, positions, kernel.init_cache(1, 8))
  np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
  ("seq_len", "head_dim", "reason"),
  [
    (128, 8, None),
    (2048, 64, None),
    (640, 512, None),
    (100, 64, "rows must be a multiple of 128 tokens long, and they have 100"),
    (128, 6, "head_dim must be a multiple of 8 and at most 512, and it is 6"),
    (128, 520, "head_dim must be a multiple of 8 and at most 512, and it is 520"),
  ],
)
def test_what_splash_cannot_serve(seq_len, head_dim, reason):
  assert splash.unserved(seq_len=seq_len, head_dim=head_dim) == reason
  if reason:
    x = jnp.zeros((1, seq_len, 1, head_dim))
    with pytest.raises(ValueError, match=f"splash attention: {reason}"):
      splash_attention().attend(x, x, x, jnp.zeros((1, seq_len), jnp.int32), PLAIN_LOGITS)


@pytest.mark.parametrize(("seq_len", "size"), [(128, 128), (640, 128), (768, 384), (4096, 512)])
def test_blocks_divide_the_row(seq_len, size):
  assert splash._block(seq_len) == size


@pytest.fixture
def absent_mesh(request):
  """Four TPUs that are not there, of (topology, size of the tensor axis)."""
  name, tensor = request.param
  before = dict(os.environ)
  prepare_environment(name)
  shape = {"replica": 1, "data": 1, "fsdp": -1, "tensor": tensor}
  yield sharding.make_mesh(shape, devices_of(topology(name)))
  os.environ.clear()
  os.environ.update(before)


def compiled_decoder(config, mesh, attention, *, seq, backward):
  model = make_model(
    config,
    dtype=jnp.bfloat16,
    remat="full",
    constrain=sharding.constrain(mesh),
    attention=attention,
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  places = sharding.parameter_shardings(mesh, model.logical_axes(), shapes)
  params = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
  )
  rows = jax.ShapeDtypeStruct((4, seq), jnp.int32, sharding=sharding.batch_sharding(mesh))
  run = lambda p, *rows: jnp.sum(model.apply(p, *rows)[0].astype(jnp.float32))
  run = jax.grad(run) if backward else run
  return jax.jit(run).lower(params, rows, rows, rows).compile()


# `tests/launch/plan_test.py` has a plan whose program has the kernel.
@pytest.mark.slow
@pytest.mark.parametrize(
  "absent_mesh",
  [("v5e:2x2", 4), ("v5e:2x2", 1), ("v6e:2x2", 2)],
  indirect=True,
)
def test_a_decoder_with_splash_compiles_for_tpus(absent_mesh):
  config = small_decoder(dim=128, head_dim=64)
  attention = splash_attention(absent_mesh)
  trained = compiled_decoder(config, absent_mesh, attention, seq=1024, backward=True).as_text()
  for phase in ("fwd", "dq", "dkv"):
    assert f"splash_mha_{phase}_segmented" in trained
  assert "1024,1024]" not in trained
  read = compiled_decoder(config, absent_mesh, attention, seq=1024, backward=False).as_text()
  assert "splash_mha_fwd_segmented_no_residuals" in read


@pytest.mark.parametrize(
  ("changes", "reason"),
  [
    ({}, None),
    ({"head_dim": 256, "capability": (9, 0)}, None),
    ({"head_dim": 256}, "head_dim must be a multiple of 8 and at most 128, and it is 256"),
    ({"head_dim": 12}, "head_dim must be a multiple of 8 and at most 128, and it is 12"),
    ({"dtype": jnp.float32}, "the dtype must be bfloat16, and it is float32"),
    ({"soft_cap": 50.0}, "it has no soft cap of attention's logits, and the model has one of 50"),
    ({"seq_len": 127}, "rows must have an even number of tokens, and they have 127"),
    ({"capability": (7, 5)}, "it needs an NVIDIA GPU of compute capability 8.0 or above"),
    ({"capability": None}, "it needs an NVIDIA GPU of compute capability 8.0 or above"),
  ],
)
def test_what_cudnn_cannot_serve(changes, reason):
  served = {"seq_len": 128, "head_dim": 64, "dtype": jnp.bfloat16, "capability": (8, 0)}
  served["soft_cap"] = None
  assert cudnn.unserved(**served | changes) == reason


@pytest.mark.parametrize("on_mesh", [False, True])
def test_cudnn_lowers_for_cuda(monkeypatch, on_mesh):
  """Only as far as the calls of cuDNN; nothing here can run them."""

  class Installed:
    @staticmethod
    def cudnn_get_version():
      return 91000

  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", Installed)
  mesh = None
  if on_mesh:
    mesh = sharding.make_mesh({"replica": 1, "data": 1, "fsdp": 2, "tensor": 4})
  attention = cudnn_attention(mesh)
  arrays = projections(heads=4, kv_heads=2, dtype=jnp.bfloat16)
  rows = packed_rows()

  def objective(*arrays):
    out = attention.attend(*arrays, attention.prepare(*rows, None), PLAIN_LOGITS)
    return jnp.sum(out.astype(jnp.float32))

  gradient = jax.jit(jax.grad(objective, (0, 1, 2)))
  text = gradient.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaScaleBiasSoftmax" in text
  assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in text
  assert "\\22mask_type\\22: \\22CAUSAL\\22" in text
