"""Wraps a Flax NNX module as a `Model`, so that it can be teacher or student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx

from egad_jax.models.config import DecoderConfig
from egad_jax.models.model import Model, Params


def nnx_model(
  module: nnx.Module,
  config: DecoderConfig,
  *,
  hidden: Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array],
  unembedding: Callable[[Params], jax.Array],
) -> tuple[Model, Params]:
  """Makes the functions of a module, and its parameters as a nested dict.

  The model has no taps and does not generate; every device holds all of its parameters.

  Args:
    module: a decoder with all its parameters.
    config: the architecture, of which dim, vocab_size and max_seq_len are used.
    hidden: `(module, tokens, positions, segment_ids) -> hidden states`, from int32 `[batch, seq]`
      to `[batch, seq, dim]` after the final norm, in the compute dtype.
    unembedding: `(params) -> [vocab, dim]`.

  Returns:
    The model and its parameters.
  """
  graph, state = nnx.split(module)
  params = nnx.to_pure_dict(state)

  def apply(params: Params, *rows: jax.Array, taps: tuple[int, ...] = ()) -> Any:
    if taps:
      raise ValueError("taps: an NNX module has none; set branch.weight to 0.")
    filled = jax.tree.map(lambda x: x, state)  # A copy: `state` must not keep tracers.
    nnx.replace_by_pure_dict(filled, params)
    result = hidden(nnx.merge(graph, filled), *rows)
    return result, jnp.zeros((0, *result.shape), result.dtype)

  def cannot_generate(*_: Any) -> NoReturn:
    raise NotImplementedError("an NNX module does not generate; set eval.sample_tokens to 0.")

  init = lambda key: params
  axes = lambda: jax.tree.map(lambda x: (None,) * x.ndim, params)
  return Model(config, init, axes, apply, cannot_generate, cannot_generate, unembedding), params
