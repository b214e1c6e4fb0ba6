"""Tests of the model's functions: init, axes, dtypes, sharding, size of the program, cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egad_jax.models.config import LayerKind
from egad_jax.models.model import make_model


def batch(config, *, rows=2, seq=8):
  tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, seq))
  positions = np.broadcast_to(np.arange(seq), (rows, seq))
  return tuple(np.asarray(a, np.int32) for a in (tokens, positions, np.ones((rows, seq))))


def test_init_is_a_plain_dict_of_float32(config):
  params = jax.jit(make_model(config).init)(jax.random.key(0))
  assert type(params) is dict
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert params["layers"]["block_0"]["mlp"]["down"].shape == (3, 32, 24)
  assert "unembedding" not in params


def test_layers_start_different_and_residual_branches_small(config):
  config = dataclasses.replace(config, dim=64, mlp_dim=128, num_layers=8, embedding_std=0.3)
  params = jax.device_get(jax.jit(make_model(config).init)(jax.random.key(0)))
  layers = params["layers"]["block_0"]
  assert np.std(params["embedding"]) == pytest.approx(0.3, rel=0.1)
  assert not np.array_equal(layers["mlp"]["up"][0], layers["mlp"]["up"][1])
  assert np.std(layers["mlp"]["up"]) == pytest.approx(64**-0.5, rel=0.1)
  assert np.std(layers["attention"]["query"]) == pytest.approx(64**-0.5, rel=0.1)
  assert np.std(layers["mlp"]["down"]) == pytest.approx((2 * 8 * 128) ** -0.5, rel=0.1)
  assert np.std(layers["attention"]["output"]) == pytest.approx((2 * 8 * 24) ** -0.5, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_logical_axes_match_the_parameters(config, tied):
  model = make_model(dataclasses.replace(config, tie_embeddings=tied))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  axes = model.logical_axes()
  jax.tree.map(
    lambda leaf, names: len(leaf.shape) == len(names) or pytest.fail(names), shapes, axes
  )
  layer = axes["layers"]["block_0"]
  assert layer["attention"]["query"] == ("layers", "embed", "heads", "head_dim")
  assert layer["attention"]["key"] == ("layers", "embed", "kv_heads", "head_dim")
  assert layer["attention"]["output"] == ("layers", "heads", "head_dim", "embed")
  assert layer["mlp"]["down"] == ("layers", "mlp", "embed")
  assert layer["mlp_norm"]["scale"] == ("layers", "embed")
  assert axes["embedding"] == ("vocab", "embed")
  assert axes.get("unembedding") == (None if tied else ("vocab", "embed"))


def test_unembedding_is_the_parameter_itself(config):
  tied, untied = (
    make_model(dataclasses.replace(config, tie_embeddings=tie), dtype=jnp.bfloat16)
    for tie in (True, False)
  )
  params = jax.eval_shape(tied.init, jax.random.key(0))
  assert tied.unembedding(params) is params["embedding"]
  params = jax.eval_shape(untied.init, jax.random.key(0))
  assert untied.unembedding(params) is params["unembedding"]
  assert untied.unembedding(params).dtype == jnp.float32


def test_tied_table_gets_gradient_from_both_its_uses(config, params):
  model = make_model(config)
  tokens, positions, segments = batch(config)

  def objective(p, table):
    hidden, _ = model.apply(p, tokens, positions, segments)
    return jnp.sum(jnp.sin(hidden @ table.T))

  grad = jax.jit(jax.grad(lambda p: objective(p, model.unembedding(p))))
  together = grad(params)["embedding"]
  parts = jax.jit(jax.grad(objective, argnums=(0, 1)))
  as_input, as_output = parts(params, params["embedding"])
  np.testing.assert_allclose(together, as_input["embedding"] + as_output, atol=1e-4, rtol=1e-4)
  assert np.abs(as_output).max() > 0.1
  assert np.abs(as_input["embedding"]).max() > 0.1


def test_program_does_not_grow_with_depth(config):
  def lines(depth, taps):
    model = make_model(dataclasses.replace(config, num_layers=depth), remat="dots")
    objective = lambda p, *b: jnp.sum(model.apply(p, *b, taps=taps)[0])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    text = jax.jit(jax.grad(objective)).lower(shapes, *batch(config)).as_text()
    return text.count("\n")

  assert lines(24, ()) == lines(3, ())
  assert lines(24, (0, 2, 3)) == lines(4, (0, 2, 3))


def test_bfloat16_computes_norms_and_softmax_in_float32(config, params):
  model = make_model(config, dtype=jnp.bfloat16)
  lines = jax.jit(model.apply).lower(params, *batch(config)).as_text().splitlines()
  norms = [line for line in lines if "stablehlo.rsqrt" in line]
  # The MLP's silu has an exponential too, in the compute dtype and without a head axis.
  mlp = f"x{config.mlp_dim}xbf16"
  softmax = [line for line in lines if "stablehlo.exponential" in line and mlp not in line]
  assert len(norms) == 3
  assert len(softmax) == 1
  assert not [line for line in norms + softmax if "bf16" in line]
  hidden, taps = jax.jit(lambda p: model.apply(p, *batch(config), taps=(1,)))(params)
  assert hidden.dtype == taps.dtype == jnp.bfloat16
  exact, _ = jax.jit(make_model(config).apply)(params, *batch(config))
  error = np.linalg.norm(np.float32(hidden) - exact) / np.linalg.norm(exact)
  assert 1e-4 < error < 2e-2


def test_gradients_of_bfloat16_compute_are_float32(config, params):
  model = make_model(config, dtype=jnp.bfloat16)
  objective = lambda p: jnp.sum(model.apply(p, *batch(config))[0].astype(jnp.float32))
  grads = jax.eval_shape(jax.grad(objective), params)
  assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_unknown_remat_lists_the_known(config):
  with pytest.raises(ValueError, match='remat must be one of none, dots, full; got "some"'):
    make_model(config, remat="some")


@pytest.mark.slow
def test_sharded_init_and_apply_equal_one_device(config):
  config = dataclasses.replace(config, num_heads=4, num_kv_heads=2, head_dim=6)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  rules = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
  }
  pinned = []

  def sharding(names):
    return NamedSharding(mesh, PartitionSpec(*(rules.get(name) for name in names)))

  def constrain(x, names):
    pinned.append(names)
    return jax.lax.with_sharding_constraint(x, sharding(names))

  model = make_model(config, constrain=constrain)
  is_names = lambda leaf: isinstance(leaf, tuple)
  shardings = jax.tree.map(sharding, model.logical_axes(), is_leaf=is_names)
  params = jax.jit(model.init, out_shardings=shardings)(jax.random.key(0))
  assert params["layers"]["block_0"]["mlp"]["up"].addressable_shards[0].data.shape == (3, 12, 16)

  plain = make_model(config)
  whole = jax.jit(plain.init)(jax.random.key(0))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, whole)
  rows = batch(config, rows=4)
  on_mesh = tuple(jax.device_put(x, sharding(("batch", "seq"))) for x in rows)
  got, _ = jax.jit(model.apply)(params, *on_mesh)
  wanted, _ = jax.jit(plain.apply)(whole, *rows)
  np.testing.assert_allclose(got, wanted, atol=1e-5)
  # Besides ids and looked-up rows of the embedding, no last axis but the MLP's is split.
  assert {names[-1] for names in pinned} == {None, "mlp", "seq", "embed"}
  assert ("batch", "seq", "kv_heads", None) in pinned


@pytest.mark.short_form(1)
@pytest.mark.parametrize("pattern", [(LayerKind(window=3), LayerKind(rope=False)), (LayerKind(),)])
def test_decoding_in_pieces_equals_apply(config, pattern):
  config = dataclasses.replace(config, num_layers=4, pattern=pattern)
  model = make_model(config)
  params = jax.jit(model.init)(jax.random.key(0))
  tokens, positions, segments = batch(config)
  wanted, _ = jax.jit(model.apply)(params, tokens, positions, segments)
  decode = jax.jit(model.decode)
  cache, pieces = model.init_cache(2, 11), []
  for first, last in ((0, 5), (5, 6), (6, 8)):
    hidden, cache = decode(params, tokens[:, first:last], positions[:, first:last], cache)
    pieces.append(hidden)
  np.testing.assert_allclose(np.concatenate(pieces, axis=1), wanted, atol=1e-5)
  assert int(cache.length) == 8


def test_padding_in_the_cache_is_never_seen(config, params):
  model = make_model(config)
  padded = jnp.array([[3, 1, 4, 9, 9, 9]]), jnp.array([[0, 1, 2, -1, -1, -1]])
  decode = jax.jit(model.decode)
  _, cache = decode(params, *padded, model.init_cache(1, 9))
  got, _ = decode(params, jnp.array([[5]]), jnp.array([[3]]), cache)
  wanted, _ = jax.jit(model.apply)(
    params, jnp.array([[3, 1, 4, 5]]), jnp.arange(4)[None], jnp.ones((1, 4), jnp.int32)
  )
  np.testing.assert_allclose(got[:, 0], wanted[:, 3], atol=1e-5)
