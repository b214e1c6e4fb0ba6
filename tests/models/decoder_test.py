"""Tests of the decoder against a plain numpy one, and of packing, taps and rematerialisation."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.models.config import LayerKind
from egad_jax.models.model import make_model

FULL, LOCAL, UNROTATED = LayerKind(), LayerKind(window=3), LayerKind(rope=False)


def batch(config, *, rows=2, seq=8, seed=0):
  tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, seq))
  positions = np.broadcast_to(np.arange(seq), (rows, seq))
  return tuple(np.asarray(a, np.int32) for a in (tokens, positions, np.ones((rows, seq))))


def applied(config, params, rows, *, taps=()):
  run = jax.jit(make_model(config).apply, static_argnames="taps")
  return jax.device_get(run(params, *rows, taps=taps))


def norm(x, scale, eps):
  return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale


def reference_layer(config, kind, p, x):
  """One layer for one unpacked row `[seq, dim]`, in loops over heads and positions."""
  normed = norm(x, p["attention_norm"]["scale"], config.norm_eps)
  a = p["attention"]
  theta = kind.rope_theta or config.rope_theta
  turn = np.exp(
    1j
    * np.arange(len(x))[:, None]
    * theta ** (-np.arange(config.head_dim // 2) * 2 / config.head_dim)
  )

  def rotated(y, which):
    if config.qk_norm:
      y = norm(y, a[f"{which}_norm"]["scale"], config.norm_eps)
    half = config.head_dim // 2
    z = (y[:, :half] + 1j * y[:, half:]) * turn
    return np.concatenate([z.real, z.imag], -1) if kind.rope else y

  out = np.zeros_like(x)
  for head in range(config.num_heads):
    shared = head // (config.num_heads // config.num_kv_heads)
    query = rotated(normed @ a["query"][:, head], "query")
    key, value = rotated(normed @ a["key"][:, shared], "key"), normed @ a["value"][:, shared]
    for i in range(len(x)):
      first = 0 if kind.window is None else max(0, i - kind.window + 1)
      scores = key[first : i + 1] @ query[i] / np.sqrt(config.head_dim)
      weights = np.exp(scores - scores.max())
      out[i] += (weights / weights.sum()) @ value[first : i + 1] @ a["output"][head]
  x = x + out
  normed = norm(x, p["mlp_norm"]["scale"], config.norm_eps)
  gate = normed @ p["mlp"]["gate"]
  return x + (gate / (1 + np.exp(-gate)) * (normed @ p["mlp"]["up"])) @ p["mlp"]["down"]


def reference(config, params, tokens):
  """All hidden states of one row, in Hugging Face's numbering."""
  params = jax.tree.map(np.float64, params)
  states = [params["embedding"][tokens]]
  for layer in range(config.num_layers):
    group, slot, repeat = config.place(layer)
    stacked = params[group][f"block_{slot}"]
    one = jax.tree.map(lambda a, r=repeat: a[r], stacked)
    states.append(reference_layer(config, config.kind(layer), one, states[-1]))
  states[-1] = norm(states[-1], params["final_norm"]["scale"], config.norm_eps)
  return states


def shaken(config):
  """Parameters whose norms are not all ones."""
  params = jax.device_get(jax.jit(make_model(config).init)(jax.random.key(2)))
  rng = np.random.default_rng(3)
  return jax.tree.map(lambda a: a + 0.2 * rng.standard_normal(a.shape).astype(np.float32), params)


@pytest.mark.parametrize(
  ("pattern", "qk_norm"),
  [
    ((FULL,), False),
    ((UNROTATED, LOCAL), False),
    ((FULL,), True),
    # The last period is partial, and its layers have a base of their own.
    ((LayerKind(window=3, rope_theta=30.0), LayerKind(rope_theta=30.0), FULL), False),
  ],
)
def test_hidden_states_and_taps_equal_the_reference(config, pattern, qk_norm):
  config = dataclasses.replace(config, num_layers=4, pattern=pattern, qk_norm=qk_norm)
  params = shaken(config)
  rows = batch(config)
  taps = (4, 0, 3, 1)
  hidden, tapped = applied(config, params, rows, taps=taps)
  for row in range(2):
    wanted = reference(config, params, np.asarray(rows[0][row]))
    np.testing.assert_allclose(hidden[row], wanted[-1], atol=2e-5)
    for got, tap in zip(tapped[:, row], taps, strict=True):
      np.testing.assert_allclose(got, wanted[tap], atol=2e-5, err_msg=f"tap {tap}")


def test_no_taps_make_an_empty_array_and_the_same_hidden_states(config, params):
  hidden, tapped = applied(config, params, batch(config))
  assert tapped.shape == (0, 2, 8, config.dim)
  with_taps, _ = applied(config, params, batch(config), taps=(1,))
  np.testing.assert_array_equal(hidden, with_taps)


@pytest.mark.slow
def test_a_partial_period_is_the_same_layers_as_whole_ones(config):
  """Three layers as a pattern of two and a half, and as a pattern of three."""
  kinds = (LOCAL, FULL, LOCAL)
  partial = dataclasses.replace(config, num_layers=3, pattern=kinds[:2])
  whole = dataclasses.replace(config, num_layers=3, pattern=kinds)
  params = shaken(partial)
  assert {g: list(params[g]) for g in ("layers", "tail")} == {
    "layers": ["block_0", "block_1"],
    "tail": ["block_0"],
  }
  layers = {**params["layers"], "block_2": params["tail"]["block_0"]}
  again = {k: v for k, v in params.items() if k != "tail"} | {"layers": layers}
  rows, taps = batch(config), (1, 2)

  def gradient(config, params):
    def objective(p):
      hidden, tapped = make_model(config).apply(p, *rows, taps=taps)
      return jnp.sum(jnp.sin(hidden)) + jnp.sum(tapped**2), (hidden, tapped)

    return jax.jit(jax.grad(objective, has_aux=True))(params)

  (got, states), (wanted, same) = gradient(partial, params), gradient(whole, again)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
  jax.tree.map(close, states, same)
  jax.tree.map(close, got["tail"]["block_0"], wanted["layers"]["block_2"])
  jax.tree.map(close, got["layers"]["block_1"], wanted["layers"]["block_1"])


@pytest.mark.parametrize("taps", [(4,), (-1,), (1, 1)])
def test_bad_taps_are_refused(config, params, taps):
  with pytest.raises(ValueError, match="taps must be distinct, from 0 to 3"):
    make_model(config).apply(params, *batch(config), taps=taps)


SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0]], np.int32)


def test_packed_segments_equal_the_same_texts_alone(config, params):
  tokens = batch(config, rows=1, seq=8)[0]
  packed, taps = applied(config, params, (tokens, POSITIONS, SEGMENTS), taps=(1,))
  for first, last in ((0, 3), (3, 7)):
    length = last - first
    alone = (
      tokens[:, first:last],
      np.arange(length, dtype=np.int32)[None],
      np.ones((1, length), np.int32),
    )
    hidden, alone_taps = applied(config, params, alone, taps=(1,))
    np.testing.assert_allclose(packed[:, first:last], hidden, atol=1e-5)
    np.testing.assert_allclose(taps[:, :, first:last], alone_taps, atol=1e-5)


@pytest.mark.parametrize(("place", "seen_by"), [(0, [0, 1, 2]), (2, [2]), (4, [4, 5, 6]), (7, [7])])
def test_other_segments_and_earlier_tokens_do_not_see_a_token(config, params, place, seen_by):
  run = jax.jit(make_model(config).apply)
  tokens = batch(config, rows=1, seq=8)[0]
  other = tokens.copy()
  other[0, place] = (tokens[0, place] + 1) % config.vocab_size
  before, after = (np.asarray(run(params, t, POSITIONS, SEGMENTS)[0]) for t in (tokens, other))
  np.testing.assert_array_equal(np.flatnonzero(np.any(before != after, axis=(0, 2))), seen_by)


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(config, params):
  def gradient(remat):
    def objective(p):
      hidden, taps = make_model(config, remat=remat).apply(p, *batch(config), taps=(2,))
      return jnp.sum(jnp.sin(hidden)) + jnp.sum(taps**2)

    return jax.jit(jax.grad(objective))(params)

  wanted = gradient("none")
  for remat in ("dots", "full"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), gradient(remat), wanted
    )


def test_rematerialisation_lowers_what_the_backward_pass_keeps(config, params):
  def kept(remat):
    model = make_model(config, remat=remat)
    objective = lambda p: jnp.sum(model.apply(p, *batch(config, rows=4, seq=32))[0])
    backward = jax.eval_shape(lambda p: jax.vjp(objective, p)[1], params)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  assert kept("full") < kept("dots") < kept("none")


def test_token_outside_the_table_gives_nan(config, params):
  tokens, positions, segments = batch(config)
  outside = tokens.copy()
  outside[0, 3] = config.vocab_size
  hidden, _ = applied(config, params, (outside, positions, segments))
  assert np.isnan(hidden[0, 3:]).all()
  assert not np.isnan(hidden[1]).any()


def test_only_layers_inside_the_scan_make_a_buffer_in_its_carry(config, params):
  def carried(taps):
    run = lambda p: make_model(config).apply(p, *batch(config), taps=taps)
    (scan,) = [e for e in jax.make_jaxpr(run)(params).eqns if e.primitive.name == "scan"]
    # What the body returns as it is; what is stacked has one more axis outside.
    pairs = zip(scan.outvars, scan.params["jaxpr"].out_avals, strict=True)
    return sum(outside.aval.shape == inside.shape for outside, inside in pairs)

  assert carried(()) == carried((config.num_layers, 0)) == carried((1,)) - 1
