from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import hard_tokens
from egad_jax.losses.routing import gather_indices, row_capacity, top_tokens


def test_hardest_first_among_the_masked():
  entropy = jnp.array([[0.1, 3.0, 2.0, 9.0], [5.0, jnp.nan, 1.0, 4.0]])
  mask = jnp.array([[1, 1, 1, 0], [1, 0, 1, 1]], bool)
  indices, valid = hard_tokens(entropy, mask, fraction=0.6)
  assert indices.tolist() == [[1, 2, 0], [0, 3, 2]]
  # 3 places for 0.6 of 4; of the 3 masked tokens of each row, ceil(1.8) are hard.
  assert valid.tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 1.0])
def test_count_is_the_fraction_of_each_row(fraction):
  entropy = jax.random.uniform(jax.random.key(0), (5, 30))
  mask = jax.random.bernoulli(jax.random.key(1), 0.6, (5, 30)).at[0].set(True).at[1].set(False)
  indices, valid = map(np.array, hard_tokens(entropy, mask, fraction=fraction))
  entropy, mask = np.array(entropy), np.array(mask)
  assert indices.shape == (5, round(30 * fraction + 0.4999))
  for row in range(5):
    count = int(mask[row].sum())
    assert int(valid[row].sum()) == int(np.ceil(fraction * count - 1e-6))
    chosen = indices[row][valid[row]]
    assert mask[row, chosen].all()
    rest = np.where(mask[row], entropy[row], -1)
    rest[chosen] = -1
    assert count == 0 or entropy[row, chosen].min() >= rest.max()


def test_ties_go_to_the_earlier_token():
  indices, _ = hard_tokens(jnp.ones((1, 6)), jnp.ones((1, 6), bool), fraction=0.5)
  assert indices.tolist() == [[0, 1, 2]]


def test_rows_do_not_depend_on_each_other_and_jit():
  entropy = jax.random.uniform(jax.random.key(0), (4, 10))
  mask = jnp.ones((4, 10), bool)
  together = jax.jit(lambda e, m: hard_tokens(e, m, fraction=0.3))(entropy, mask)
  for row in range(4):
    alone = hard_tokens(entropy[row : row + 1], mask[row : row + 1], fraction=0.3)
    np.testing.assert_array_equal(alone[0][0], together[0][row])
    np.testing.assert_array_equal(alone[1][0], together[1][row])


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1.0])
def test_top_tokens_are_the_hard_tokens(fraction):
  entropy = jnp.round(4 * jax.random.uniform(jax.random.key(0), (5, 30)))  # Ties.
  mask = jax.random.bernoulli(jax.random.key(1), 0.6, (5, 30)).at[1].set(False)
  indices, valid = hard_tokens(entropy, mask, fraction=fraction)
  expected = np.zeros((5, 30), bool)
  for row in range(5):
    expected[row, indices[row][valid[row]]] = True
  entropy = jnp.where(mask, entropy, jnp.nan)
  marked = jax.jit(lambda e, m: top_tokens(e, m, fraction=fraction))(entropy, mask)
  np.testing.assert_array_equal(marked, expected)
  np.testing.assert_array_equal(top_tokens(entropy[2], mask[2], fraction=fraction), expected[2])
  stacked = top_tokens(entropy[None], mask[None], fraction=fraction)
  np.testing.assert_array_equal(stacked[0], expected)


def test_gather_leaves_places_empty():
  indices, valid = gather_indices(
    jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[True, False, False]]), capacity=2
  )
  assert indices[0, 0] == 0
  assert valid.tolist() == [[True, False]]


def test_capacity():
  assert [row_capacity(f, 30) for f in (0.05, 0.1, 0.5, 0.9, 0.001)] == [3, 6, 30, 30, 1]


def test_misuse():
  with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 0"):
    hard_tokens(jnp.ones((1, 2)), jnp.ones((1, 2)), fraction=0)
  with pytest.raises(ValueError, match=r"shape \[batch, seq\], got \(2,\)"):
    hard_tokens(jnp.ones(2), jnp.ones(2), fraction=0.5)
  with pytest.raises(ValueError, match="one entry per token"):
    hard_tokens(jnp.ones((1, 2)), jnp.ones((1, 3)), fraction=0.5)
  with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got 1.5"):
    top_tokens(jnp.ones(2), jnp.ones(2), fraction=1.5)
  with pytest.raises(ValueError, match=r"shape \[..., seq\], got \(\)"):
    top_tokens(jnp.ones(()), jnp.ones(()), fraction=0.5)
  with pytest.raises(TypeError, match="entropy must be floating point"):
    hard_tokens(jnp.ones((1, 2), int), jnp.ones((1, 2)), fraction=0.5)
