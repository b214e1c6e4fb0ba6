"""The dense distribution that stands for a `TopK`: its ids as they are, and an even tail."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import TopK, entropy_bracket, spread_tail, token_entropy, top_k_teacher

LOGITS = (2 * np.random.default_rng(0).normal(size=(3, 4, 9))).astype(np.float32)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_by_hand(k):
  top_k = top_k_teacher(LOGITS, k)
  p = np.exp(LOGITS.astype(np.float64))
  p /= p.sum(-1, keepdims=True)
  expected = p.copy()
  for token in np.ndindex(3, 4):
    rest = np.argsort(-p[token])[k:]
    expected[token][rest] = p[token][rest].mean()
  np.testing.assert_allclose(np.exp(spread_tail(top_k, 9)), expected, rtol=2e-5)
  # No distribution with the same top k has a larger entropy.
  _, high = entropy_bracket(top_k, 9)
  np.testing.assert_allclose(token_entropy(spread_tail(top_k, 9)), high, rtol=1e-5)
  # The likeliest id stays where it was.
  np.testing.assert_array_equal(np.argmax(spread_tail(top_k, 9), -1), np.argmax(LOGITS, -1))


def test_all_entries_are_the_distribution():
  found = spread_tail(top_k_teacher(LOGITS, 9), 9)
  np.testing.assert_allclose(found, jax.nn.log_softmax(LOGITS), rtol=1e-6, atol=1e-6)


def test_a_tail_without_mass_is_minus_infinity_and_others_keep_tiny_shares():
  ids, log_probs = jnp.array([[2, 0], [2, 0]]), jnp.log(jnp.array([[0.75, 0.25]] * 2))
  found = spread_tail(TopK(ids, log_probs, jnp.array([-jnp.inf, -200.0])), 4)
  np.testing.assert_allclose(found[0], [np.log(0.25), -np.inf, np.log(0.75), -np.inf])
  np.testing.assert_allclose(found[1, [1, 3]], -200 - np.log(2), rtol=1e-6)


def test_ids_outside_the_vocabulary_are_left_out():
  top_k = TopK(jnp.array([1, 7]), jnp.log(jnp.array([0.5, 0.25])), jnp.log(0.25))
  found = np.exp(spread_tail(top_k, 3))
  np.testing.assert_allclose(found, [0.25, 0.5, 0.25], rtol=1e-6)


def test_it_is_detached_and_at_least_float32():
  def total(logits):
    return jnp.sum(spread_tail(top_k_teacher(logits, 3), 9) ** 2)

  assert not np.any(jax.grad(total)(LOGITS))
  ids = jnp.array([0, 1])
  half = TopK(ids, jnp.array([-1.0, -2.0], jnp.bfloat16), jnp.array(-0.5, jnp.bfloat16))
  assert spread_tail(half, 5).dtype == jnp.float32


def test_misuse_names_the_argument():
  top_k = top_k_teacher(LOGITS, 4)
  with pytest.raises(ValueError, match=r"log_tail of a TopK must be given.*Give -inf"):
    spread_tail(top_k._replace(log_tail=None), 9)
  with pytest.raises(ValueError, match="k of their 3 entries"):
    spread_tail(top_k, 3)
  with pytest.raises(TypeError, match="ids of a TopK must be integers"):
    spread_tail(top_k._replace(ids=top_k.log_probs), 9)
