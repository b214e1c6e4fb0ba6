from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax.losses import hard_tokens
from egad_jax.losses.routing import gather_indices, row_capacity, top_tokens

compiled_hard = jax.jit(hard_tokens, static_argnames="fraction")


def draw(rows, seq):
  """Entropies, and a mask with about 0.6 of the tokens."""
  generator = np.random.default_rng(0)
  entropy = generator.uniform(size=(rows, seq)).astype(np.float32)
  return entropy, generator.uniform(size=(rows, seq)) < 0.6


def test_hardest_first_among_the_masked():
  entropy = np.array([[0.1, 3.0, 2.0, 9.0], [5.0, np.nan, 1.0, 4.0]], np.float32)
  mask = np.array([[1, 1, 1, 0], [1, 0, 1, 1]], bool)
  indices, valid = hard_tokens(entropy, mask, fraction=0.6)
  assert indices.tolist() == [[1, 2, 0], [0, 3, 2]]
  # 3 places for 0.6 of 4; of the 3 masked tokens of each row, ceil(1.8) are hard.
  assert valid.tolist() == [[True, True, False]] * 2


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 1.0])
def test_count_is_the_fraction_of_each_row(fraction):
  entropy, mask = draw(5, 30)
  mask[0], mask[1] = True, False
  indices, valid = map(np.array, compiled_hard(entropy, mask, fraction=fraction))
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
  indices, _ = compiled_hard(np.ones((1, 6), np.float32), np.ones((1, 6), bool), fraction=0.5)
  assert indices.tolist() == [[0, 1, 2]]


def test_rows_do_not_depend_on_each_other_and_jit():
  entropy, _ = draw(4, 10)
  mask = np.ones((4, 10), bool)
  together = compiled_hard(entropy, mask, fraction=0.3)
  for row in range(4):
    alone = hard_tokens(entropy[row : row + 1], mask[row : row + 1], fraction=0.3)
    np.testing.assert_array_equal(alone[0][0], together[0][row])
    np.testing.assert_array_equal(alone[1][0], together[1][row])


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1.0])
def test_top_tokens_are_the_hard_tokens(fraction):
  entropy, mask = draw(5, 30)
  entropy = np.round(4 * entropy)  # Ties.
  mask[1] = False
  indices, valid = map(np.asarray, compiled_hard(entropy, mask, fraction=fraction))
  expected = np.zeros((5, 30), bool)
  for row in range(5):
    expected[row, indices[row][valid[row]]] = True
  entropy = np.where(mask, entropy, np.float32(np.nan))
  function = functools.partial(top_tokens, fraction=fraction)
  marked, alone, stacked = jax.jit(
    lambda e, m: (function(e, m), function(e[2], m[2]), function(e[None], m[None]))
  )(entropy, mask)
  np.testing.assert_array_equal(marked, expected)
  np.testing.assert_array_equal(alone, expected[2])
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
