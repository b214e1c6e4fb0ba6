"""Tests of the mixture of experts against a loop over tokens and experts, alone and on a mesh."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import device_arrays, sharding
from egad_jax.models.config import Experts
from egad_jax.models.mlp import ExpertMLPs
from egad_jax.models.model import make_model

EXPERTS = Experts(count=4, chosen=2, mlp_dim=10)


def make(config, experts=EXPERTS):
  config = dataclasses.replace(config, experts=experts)
  module = ExpertMLPs(config, jnp.float32, jnp.float32)
  rng = np.random.default_rng(0)
  shape = {"router": (config.dim, experts.count)}
  for name, inner in (("gate", 0), ("up", 0), ("down", 1)):
    sizes = (config.dim, experts.mlp_dim)
    shape[name] = (experts.count, *(sizes[::-1] if inner else sizes))
  params = {name: rng.standard_normal(s).astype(np.float32) * 0.2 for name, s in shape.items()}
  return module, params, rng.standard_normal((2, 5, config.dim)).astype(np.float32)


def dense(p, x, experts):
  """The same with every expert for every token, weighted by 0 where it was not chosen."""
  probs = jax.nn.softmax(x @ p["router"], axis=-1)
  least = jnp.sort(probs, axis=-1)[..., -experts.chosen][..., None]
  weights = jnp.where(probs >= least, probs, 0)
  if experts.renormalize:
    weights = weights / weights.sum(-1, keepdims=True)
  gate = jnp.einsum("bsd,edm->bsem", x, p["gate"])
  inner = jax.nn.silu(gate) * jnp.einsum("bsd,edm->bsem", x, p["up"])
  return jnp.einsum("bsem,emd,bse->bsd", inner, p["down"], weights)


def assert_close(got, wanted):
  """Equal up to rounding of sums, of which the largest of an array tells the size."""
  scale = max(1, np.abs(wanted).max())
  np.testing.assert_allclose(got, wanted, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize(
  "experts", [EXPERTS, dataclasses.replace(EXPERTS, chosen=1, renormalize=False)]
)
def test_value_and_gradient_equal_those_of_all_experts(config, experts):
  module, params, x = make(config, experts)
  weight = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

  def both(function):
    objective = lambda p, x: jnp.sum(jnp.sin(function(p, x)) * weight)
    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))(params, x)

  got = both(lambda p, x: module.apply({"params": p}, x))
  wanted = both(lambda p, x: dense(p, x, experts))
  jax.tree.map(assert_close, got, wanted)


def test_experts_that_no_token_chooses(config):
  module, params, x = make(config)
  params["router"] = np.zeros_like(params["router"])
  params["router"][0, :2] = 50.0
  x = np.abs(x)
  got = jax.jit(lambda p, x: module.apply({"params": p}, x))(params, x)
  np.testing.assert_allclose(got, dense(params, x, EXPERTS), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, 3])
def test_sharded_experts_give_what_one_device_does(config, count):
  """Three experts are not split over two devices."""
  experts = dataclasses.replace(EXPERTS, count=count)
  config = dataclasses.replace(config, num_layers=2, experts=experts)
  mesh = sharding.make_mesh({"replica": 1, "data": 1, "fsdp": 2, "tensor": 2}, jax.devices()[:4])
  model = make_model(config)
  params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
  rows = (
    np.random.default_rng(0).integers(0, config.vocab_size, (4, 8)).astype(np.int32),
    np.broadcast_to(np.arange(8, dtype=np.int32), (4, 8)),
    np.ones((4, 8), np.int32),
  )

  def with_gradient(model):
    objective = lambda p, *rows: jnp.sum(jnp.sin(model.apply(p, *rows)[0]))
    return jax.jit(jax.value_and_grad(objective))

  wanted = with_gradient(model)(params, *rows)
  split = make_model(config, constrain=sharding.constrain(mesh), mesh=mesh)
  shardings = sharding.parameter_shardings(mesh, split.logical_axes(), params)
  kept = shardings["layers"]["block_0"]["mlp"]["gate"].shard_shape((2, count, 24, 10))
  assert kept == (2, 2 if count == 4 else 3, 12, 10)
  placed = device_arrays.put(params, shardings), *sharding.device_put_batch(rows, mesh)
  got = with_gradient(split)(*placed)
  jax.tree.map(assert_close, got, wanted)
