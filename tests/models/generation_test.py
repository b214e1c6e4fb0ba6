"""Tests of generation against a loop without a cache, and of the choice of tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.errors import InputError
from egad_jax.models.generation import Sampling, _run, generate, sample
from egad_jax.models.model import make_model

PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]


@pytest.fixture(scope="module")
def model(config):
  """One model for all tests here, since programs are compiled for each model."""
  return make_model(config)


@pytest.fixture(scope="module")
def lively(params):
  """Parameters whose continuations do not repeat one token."""
  rng = np.random.default_rng(5)
  return jax.tree.map(lambda a: a + rng.standard_normal(a.shape).astype(np.float32), params)


def without_cache(model, params, prompt, count):
  """Greedy continuation by whole forward passes."""
  apply = jax.jit(model.apply)
  tokens = np.zeros((1, len(prompt) + count), np.int32)
  tokens[0, : len(prompt)] = prompt
  positions = np.arange(tokens.shape[1])[None]
  for end in range(len(prompt), tokens.shape[1]):
    hidden, _ = apply(params, tokens, positions, np.ones_like(tokens))
    tokens[0, end] = int(jnp.argmax(hidden[0, end - 1] @ params["embedding"].T))
  return tokens[0, len(prompt) :].tolist()


def test_greedy_equals_whole_forward_passes(model, lively):
  got = generate(model, lively, PROMPTS, max_new_tokens=8, temperature=0.0)
  wanted = [without_cache(model, lively, prompt, 8) for prompt in PROMPTS]
  assert got == wanted
  assert len(set(got[0])) > 2


def test_stops_before_the_end_token(model, lively):
  [whole, _] = generate(model, lively, PROMPTS, max_new_tokens=8, temperature=0.0)
  end = whole[2]
  assert end not in whole[:2]
  options = {"max_new_tokens": 8, "temperature": 0.0}
  rows = generate(model, lively, PROMPTS, eos_id=end, **options)
  assert rows[0] == whole[:2]
  assert generate(model, lively, PROMPTS, eos_id=[39, end], **options)[0] == whole[:2]
  assert generate(model, lively, PROMPTS, eos_id=whole[0], **options)[0] == []


def test_seed_decides(model, lively):
  options = {"max_new_tokens": 8, "temperature": 2.0}
  first, again, other = (
    generate(model, lively, PROMPTS, seed=seed, **options) for seed in (1, 1, 2)
  )
  assert first == again
  assert first != other


def test_soft_cap_flattens_the_distribution(config, model, lively):
  cold = {"max_new_tokens": 8, "temperature": 0.01}
  greedy = generate(model, lively, PROMPTS, max_new_tokens=8, temperature=0.0)
  assert generate(model, lively, PROMPTS, **cold) == greedy
  # Between -1e-3 and 1e-3 even the cold distribution is almost uniform.
  capped = make_model(dataclasses.replace(config, logit_soft_cap=1e-3))
  assert generate(capped, lively, PROMPTS, **cold) != greedy


def test_compiled_once_for_a_shape(model, lively):
  options = {"max_new_tokens": 8, "temperature": 0.7}
  generate(model, lively, PROMPTS, **options)
  compiled = _run._cache_size()
  generate(model, lively, [[1] * 30, [2]], seed=7, **options)
  generate(model, lively, PROMPTS, max_new_tokens=8, temperature=1.3, eos_id=None)
  assert _run._cache_size() == compiled


def choices(logits, *, temperature=1.0, top_k=None, top_p=1.0, vocab_size=None, count=400):
  """The distribution of many draws from one row of logits."""
  sampling = Sampling(temperature == 0, top_k, top_p < 1, vocab_size)
  rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
  drawn = sample(
    jax.random.key(0),
    rows,
    temperature=jnp.float32(temperature),
    top_p=jnp.float32(top_p),
    sampling=sampling,
  )
  assert drawn.dtype == jnp.int32
  return np.bincount(drawn, minlength=len(logits)) / count


LOGITS = np.log([0.5, 0.3, 0.15, 0.05])


def test_draws_follow_the_probabilities():
  np.testing.assert_allclose(choices(LOGITS, count=20_000), np.exp(LOGITS), atol=0.02)
  sharper = np.exp(LOGITS) ** 2
  np.testing.assert_allclose(
    choices(LOGITS, temperature=0.5, count=20_000), sharper / sharper.sum(), atol=0.02
  )


def test_temperature_zero_takes_the_best():
  np.testing.assert_array_equal(choices(LOGITS[::-1], temperature=0.0), [0, 0, 0, 1])


@pytest.mark.parametrize(("top_k", "kept"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_top_k(top_k, kept):
  assert np.count_nonzero(choices(LOGITS, top_k=top_k)) == kept


@pytest.mark.parametrize(("top_p", "kept"), [(1e-6, 1), (0.4, 1), (0.7, 2), (0.81, 3), (0.999, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
  assert np.count_nonzero(choices(LOGITS, top_p=top_p)) == kept


def test_padding_ids_are_never_chosen():
  for temperature in (0.0, 1.0):
    drawn = choices([0.0, 1.0, 9.0, 9.0], vocab_size=2, temperature=temperature)
    assert not drawn[2:].any()


@pytest.mark.parametrize(
  ("prompts", "options", "message"),
  [
    ([[1], []], {}, "prompt must have at least one token"),
    ([], {}, "prompt must have at least one token"),
    ([[1] * 60], {}, r"prompt \(60 tokens\) and max_new_tokens \(8\) must fit the model's 64"),
    ([[1]], {"temperature": -1.0}, "temperature must be 0 or more and finite; got -1.0"),
    ([[1]], {"temperature": float("nan")}, "temperature"),
    ([[1]], {"top_k": 0}, "top_k must be at least 1"),
    ([[1]], {"top_p": 0.0}, "top_p must be above 0 and at most 1"),
    ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
  ],
)
def test_bad_requests_are_refused(model, params, prompts, options, message):
  with pytest.raises(InputError, match=message):
    generate(model, params, prompts, **{"max_new_tokens": 8, **options})
