"""A Flax NNX module as teacher and as student."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from egad_jax.data.batches import Batch
from egad_jax.models.architectures import architecture
from egad_jax.models.nnx_model import nnx_model
from egad_jax.teachers import ColocatedTeacher

VOCAB, DIM = 32, 8


class Bigram(nnx.Module):
  def __init__(self, rngs):
    self.embed = nnx.Embed(VOCAB, DIM, rngs=rngs)
    self.mix = nnx.Linear(DIM, DIM, rngs=rngs)

  def __call__(self, tokens):
    return nnx.tanh(self.mix(self.embed(tokens)))


@pytest.fixture(scope="module")
def made():
  module = Bigram(nnx.Rngs(0))
  config = dataclasses.replace(architecture("tiny"), dim=DIM, vocab_size=VOCAB)
  model, params = nnx_model(
    module,
    config,
    hidden=lambda module, tokens, positions, segment_ids: module(tokens),
    unembedding=lambda params: params["embed"]["embedding"],
  )
  return module, model, params


TOKENS = np.arange(8, dtype=np.int32).reshape(2, 4)


def test_hidden_states_are_those_of_the_module(made):
  module, model, params = made
  hidden, taps = jax.jit(model.apply)(params, TOKENS, TOKENS, TOKENS)
  np.testing.assert_allclose(hidden, module(TOKENS), rtol=1e-6)
  assert taps.shape == (0, 2, 4, DIM)
  assert model.num_parameters() == VOCAB * DIM + DIM * DIM + DIM
  assert model.logical_axes()["mix"]["kernel"] == (None, None)


def test_parameters_are_those_given_and_have_a_gradient(made):
  _, model, params = made
  total = lambda p: jnp.sum(model.apply(p, TOKENS, TOKENS, TOKENS)[0])
  doubled = jax.tree.map(lambda x: 2 * x, params)
  assert float(total(doubled)) != float(total(params))
  # By hand: the derivative of sum tanh(y) by the bias is sum 1 - tanh(y)^2.
  hidden, _ = model.apply(params, TOKENS, TOKENS, TOKENS)
  gradient = jax.grad(total)(params)["mix"]["bias"]
  np.testing.assert_allclose(gradient, jnp.sum(1 - hidden**2, axis=(0, 1)), rtol=1e-5)


def test_as_a_teacher_it_gives_its_outputs_without_gradient(made):
  _, model, params = made
  teacher = ColocatedTeacher(model, jax.make_mesh((1,), ("data",)), params)
  batch = Batch(TOKENS, TOKENS, TOKENS, np.ones_like(TOKENS), np.ones(TOKENS.shape, bool))
  outputs = teacher.outputs(params, batch)
  np.testing.assert_array_equal(outputs.unembedding, params["embed"]["embedding"])
  gradient = jax.grad(lambda p: jnp.sum(teacher.outputs(p, batch).hidden))(params)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_taps_are_refused(made):
  _, model, params = made
  with pytest.raises(ValueError, match="taps: an NNX module has none"):
    model.apply(params, TOKENS, TOKENS, TOKENS, taps=(1,))
