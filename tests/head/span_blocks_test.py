"""Averages of the tokens of blocks, which the tests of the whole head reach in few cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.head.span_blocks import BlockTokens, cut_into_blocks, tokens_of_blocks
from egad_jax.losses.spans import SPAN_AVERAGES

# Two blocks of four tokens: pairs of 2 and 1 tokens, and a token of no pair; pairs of 1 and 3.
SPANS = [[(0, 1), (2,), (), ()], [(3,), (0, 1, 2), (), ()]]


def expected(log_p, average):
  """Log-probabilities of the pairs with tokens, one by one, in float64."""
  for block, pairs in enumerate(SPANS):
    for pair, tokens in enumerate(pairs):
      if not tokens:
        continue
      of_tokens = log_p[block, list(tokens)]
      if average == "prob":
        yield block, pair, np.log(np.exp(of_tokens).mean(0))
      elif average == "chain_rule":
        yield block, pair, of_tokens[0]
      else:
        mean = of_tokens.mean(0)
        yield block, pair, mean - np.log(np.exp(mean).sum())


def test_a_block_has_the_tokens_of_its_pairs_and_no_others():
  # Pairs of 2, 1 and 2 tokens, and one that the teacher lacks; a block holds 3 tokens.
  student = jnp.asarray([[1, 1, 2, 3, 3, 4]], jnp.int32)
  teacher = jnp.asarray([[1, 2, 2, 3, 0, 0]], jnp.int32)
  layout = cut_into_blocks(student, teacher, 3, multiple=1)
  assert int(layout.num_blocks) == 2
  for side, found in ((layout.student, [[0, 1, 2], [3, 4]]), (layout.teacher, [[0, 1, 2], [3]])):
    tokens, members = tokens_of_blocks(layout, side, 0, 2, 3)
    assert [[int(t) for t in block if t < 6] for block in tokens] == found
    assert len(set(np.asarray(tokens).reshape(-1).tolist())) == 6
    np.testing.assert_array_equal(members.sum((1, 2)), [len(block) for block in found])


@pytest.mark.parametrize("average", SPAN_AVERAGES)
@pytest.mark.parametrize("is_of_pair", [False, True])
def test_averages_of_blocks_are_those_of_each_pair(average, is_of_pair):
  logits = np.random.default_rng(0).normal(size=(2, 4, 7)).astype(np.float32)
  members = np.zeros((2, 4, 4), bool)
  for block, pairs in enumerate(SPANS):
    for pair, tokens in enumerate(pairs):
      members[block, pair, list(tokens)] = True
  temperature = np.full((2, 4), 1.7, np.float32) if is_of_pair else 1.7
  tokens = BlockTokens(jnp.asarray(logits), jnp.asarray(members))
  run = jax.jit(lambda t: (tokens.log_average(t, average), tokens.average(t, average)))
  found, probabilities = run(jnp.asarray(temperature))
  np.testing.assert_array_equal(tokens.counts, [[2, 1, 0, 0], [1, 3, 0, 0]])
  assert tokens.counts.dtype == logits.dtype
  warm = np.float64(logits) / 1.7
  log_p = warm - np.log(np.exp(warm).sum(-1, keepdims=True))
  for block, pair, value in expected(log_p, average):
    np.testing.assert_allclose(found[block, pair], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(probabilities[block, pair], np.exp(value), rtol=1e-5)


def test_slots_without_a_pair_leave_the_gradient_finite():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 7)).astype(np.float32))
  members = np.zeros((1, 4, 4), bool)
  members[0, 0, :2] = members[0, 1, 2] = True
  valid = np.any(members, axis=-1)[..., None]

  @jax.jit
  @jax.grad
  def gradient_of(logits):
    averages = BlockTokens(logits, jnp.asarray(members)).average(1.0, "prob")
    return jnp.sum(jnp.where(valid, averages**2, 0))

  gradient = np.asarray(gradient_of(logits))
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[0, 3], 0)
  assert np.abs(gradient[0, :3]).min() > 0
