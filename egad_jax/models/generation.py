"""Text generation: prefill, then a compiled loop with a key/value cache."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from egad_jax import processes
from egad_jax.errors import InputError
from egad_jax.models.decoder import Cache
from egad_jax.models.model import Model, Params

# Prompts are padded to a multiple of this many tokens, so that few lengths are compiled.
_PROMPT_BUCKET = 64


class Sampling(NamedTuple):
  """The static settings of sampling; `temperature` and `top_p` change without recompilation.

  Attributes:
    greedy: whether to take the most probable token.
    top_k: number of most probable tokens that are kept; None keeps all.
    nucleus: whether `top_p` applies.
    vocab_size: number of ids of the tokenizer; larger ids are padding and never chosen. None allows
      all ids.
  """

  greedy: bool
  top_k: int | None
  nucleus: bool
  vocab_size: int | None


def generate(
  model: Model,
  params: Params,
  prompts: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  seed: int = 0,
  eos_id: int | Sequence[int] | None = None,
  vocab_size: int | None = None,
) -> list[list[int]]:
  """Continues prompts, all in one batch.

  The program is compiled once for each model, number of prompts, longest prompt rounded up to a
  multiple of 64, `max_new_tokens` and `Sampling`.

  Args:
    model: the model's functions.
    params: the model's parameters; pass device arrays when calling more than once.
    prompts: ids of each prompt, at least one.
    max_new_tokens: the most tokens that are added to each prompt, at least 1.
    temperature: divisor of the logits; 0 takes the most probable token.
    top_k: sample among this many most probable tokens; None among all.
    top_p: sample among the fewest most probable tokens whose probabilities sum to at least this,
      above 0 and at most 1; None among all.
    seed: seed of the random choices.
    eos_id: the id or ids that end a continuation and are not part of it; None for no end.
    vocab_size: number of ids of the tokenizer, if the model has more rows; None allows all ids.

  Returns:
    The ids of each continuation, without its prompt.

  Raises:
    InputError: a prompt is empty or too long, or a setting is out of range.
  """
  sampling = _sampling(temperature, top_k, top_p, vocab_size)
  lengths = [len(prompt) for prompt in prompts]
  _check_lengths(lengths, max_new_tokens, model.config.max_seq_len)
  padded = -(-max(lengths) // _PROMPT_BUCKET) * _PROMPT_BUCKET
  tokens = np.zeros((len(prompts), padded), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[: len(prompt)] = prompt
  request = _Request(
    tokens=jnp.asarray(tokens),
    lengths=jnp.asarray(lengths, jnp.int32),
    temperature=jnp.float32(temperature),
    top_p=jnp.float32(1.0 if top_p is None else top_p),
    key=jax.random.key(seed),
    eos_ids=jnp.asarray(np.atleast_1d(() if eos_id is None else eos_id), jnp.int32),
  )
  new, counts = _run(model, params, request, max_new_tokens=max_new_tokens, sampling=sampling)
  new, counts = processes.fetch((new, counts))
  rows = zip(new.tolist(), counts.tolist(), strict=True)
  return [row[:count] for row, count in rows]


def sample(
  key: jax.Array,
  logits: jax.Array,
  *,
  temperature: jax.Array,
  top_p: jax.Array,
  sampling: Sampling,
) -> jax.Array:
  """Chooses one token for each row of `logits`.

  Args:
    key: JAX random key, a scalar.
    logits: float32 `[batch, vocab]`.
    temperature: positive float32 scalar; unused if `sampling.greedy`.
    top_p: float32 scalar; used only if `sampling.nucleus`.
    sampling: the static settings.

  Returns:
    int32 `[batch]`, the chosen ids.
  """
  if sampling.vocab_size is not None:
    real = jnp.arange(logits.shape[-1]) < sampling.vocab_size
    logits = jnp.where(real[None], logits, -jnp.inf)
  if sampling.greedy:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  logits = logits / temperature
  if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
    least = lax.top_k(logits, sampling.top_k)[0][:, -1:]
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  if sampling.nucleus:
    ranked = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(ranked, axis=-1)
    # A token is kept while those before it sum to less than top_p, so the first one always is.
    kept = jnp.cumsum(probs, axis=-1) - probs < top_p
    least = jnp.min(jnp.where(kept, ranked, jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(logits >= least, logits, -jnp.inf)
  return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


class _Request(NamedTuple):
  tokens: jax.Array  # int32 [batch, padded], prompts, padded on the right.
  lengths: jax.Array  # int32 [batch], lengths of the prompts.
  temperature: jax.Array
  top_p: jax.Array
  key: jax.Array
  eos_ids: jax.Array  # int32 [any]


class _Loop(NamedTuple):
  step: jax.Array  # Scalar int32, number of tokens sampled so far for each row.
  last: jax.Array  # int32 [batch], the newest token.
  new: jax.Array  # int32 [batch, max_new_tokens], all sampled tokens.
  counts: jax.Array  # int32 [batch], continuation lengths without the end token.
  done: jax.Array  # bool [batch], whether an end token was sampled.
  cache: Cache


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "sampling"))
def _run(
  model: Model,
  params: Params,
  request: _Request,
  *,
  max_new_tokens: int,
  sampling: Sampling,
) -> tuple[jax.Array, jax.Array]:
  tokens, lengths = request.tokens, request.lengths
  batch, padded = tokens.shape
  unembedding = model.unembedding(params)

  def choose(hidden: jax.Array, step: jax.Array) -> jax.Array:
    logits = jnp.einsum(
      "bd,vd->bv", hidden, unembedding.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    cap = model.config.logit_soft_cap
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    return sample(
      jax.random.fold_in(request.key, step),
      logits,
      temperature=request.temperature,
      top_p=request.top_p,
      sampling=sampling,
    )

  def put(loop: _Loop, token: jax.Array) -> _Loop:
    done = loop.done | jnp.isin(token, request.eos_ids)
    new = lax.dynamic_update_slice_in_dim(loop.new, token[:, None], loop.step, axis=1)
    counts = jnp.where(done, loop.counts, loop.step + 1)
    return loop._replace(step=loop.step + 1, last=token, new=new, counts=counts, done=done)

  def advance(loop: _Loop) -> _Loop:
    positions = lengths + loop.step - 1
    hidden, cache = model.decode(params, loop.last[:, None], positions[:, None], loop.cache)
    return put(loop._replace(cache=cache), choose(hidden[:, 0], loop.step))

  places = jnp.broadcast_to(jnp.arange(padded), tokens.shape)
  positions = jnp.where(places < lengths[:, None], places, -1)
  hidden, cache = model.decode(
    params, tokens, positions, model.init_cache(batch, padded + max_new_tokens)
  )
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
  zero = jnp.int32(0)
  start = _Loop(
    step=zero,
    last=jnp.zeros(batch, jnp.int32),
    new=jnp.zeros((batch, max_new_tokens), jnp.int32),
    counts=jnp.zeros(batch, jnp.int32),
    done=jnp.zeros(batch, bool),
    cache=cache,
  )
  end = lax.while_loop(
    lambda loop: (loop.step < max_new_tokens) & ~jnp.all(loop.done),
    advance,
    put(start, choose(last, zero)),
  )
  return end.new, end.counts


def _sampling(
  temperature: float, top_k: int | None, top_p: float | None, vocab_size: int | None
) -> Sampling:
  if not 0 <= temperature < float("inf"):
    raise InputError(f"temperature must be 0 or more and finite; got {temperature}.")
  if top_k is not None and top_k < 1:
    raise InputError(f"top_k must be at least 1, or absent for all tokens; got {top_k}.")
  if top_p is not None and not 0 < top_p <= 1:
    raise InputError(f"top_p must be above 0 and at most 1; got {top_p}.")
  nucleus = top_p is not None and top_p < 1
  return Sampling(temperature == 0, top_k, nucleus, vocab_size)


def _check_lengths(lengths: Sequence[int], max_new_tokens: int, max_seq_len: int) -> None:
  if max_new_tokens < 1:
    raise InputError(f"max_new_tokens must be at least 1; got {max_new_tokens}.")
  if not lengths or min(lengths) == 0:
    raise InputError("prompt must have at least one token; got an empty one.")
  if max(lengths) + max_new_tokens > max_seq_len:
    raise InputError(
      f"prompt ({max(lengths)} tokens) and max_new_tokens ({max_new_tokens}) must fit the "
      f"model's {max_seq_len} positions together; shorten one of them."
    )
