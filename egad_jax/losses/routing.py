"""Selection of tokens of a row by entropy, and gathering them with static shapes.

Mechanism 3 of EGAD and methods that select tokens use it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import check_mask, promote


def hard_tokens(
  entropy: ArrayLike, mask: ArrayLike, *, fraction: float
) -> tuple[jax.Array, jax.Array]:
  """Picks the tokens of highest entropy in each row.

  Args:
    entropy: teacher entropy, float, shape [batch, seq]. Values outside the mask are ignored.
    mask: bool, shape [batch, seq], true at tokens that count.
    fraction: share of each row's masked tokens to pick, rounded up, in (0, 1].

  Returns:
    indices int32 [batch, k] into seq, hardest first (the earlier token at ties), and valid bool
    [batch, k]; k = ceil(fraction seq), and a row with n masked tokens has ceil(fraction n) valid.

  Raises:
    TypeError: `entropy` is not floating point.
    ValueError: ranks or shapes differ from the above or `fraction` is out of range.

  >>> indices, valid = hard_tokens(
  ...   jnp.array([[0.1, 2.0, 1.0, 9.0]]), jnp.array([[True, True, True, False]]), fraction=0.5)
  >>> indices.tolist(), valid.tolist()
  ([[1, 2]], [[True, True]])
  """
  check_fraction(fraction)
  entropy = promote("entropy", entropy)
  if entropy.ndim != 2:
    raise ValueError(f"entropy must have shape [batch, seq], got {entropy.shape}.")
  mask = check_mask(mask, entropy.shape)
  capacity = _round_up(fraction * entropy.shape[1])
  indices, valid = gather_indices(entropy, mask, capacity=capacity)
  wanted = _share_of_row(fraction, mask)
  return indices, valid & (jnp.arange(capacity)[None, :] < wanted)


def top_tokens(entropy: ArrayLike, mask: ArrayLike, *, fraction: float) -> jax.Array:
  """Marks the tokens that `hard_tokens` picks, for any leading axes.

  Args:
    entropy: float, shape [..., seq]. Values outside the mask are ignored.
    mask: bool, shape [..., seq], true at tokens that count.
    fraction: share of each row's masked tokens to mark, rounded up, in (0, 1].

  Returns:
    bool [..., seq], true at the picked tokens.

  Raises:
    TypeError: `entropy` is not floating point.
    ValueError: shapes differ, there is no axis, or `fraction` is out of range.

  >>> top_tokens(jnp.array([0.1, 2.0, 1.0, 9.0]), jnp.array([1, 1, 1, 0]), fraction=0.5).tolist()
  [False, True, True, False]
  """
  check_fraction(fraction)
  entropy = promote("entropy", entropy)
  if entropy.ndim < 1:
    raise ValueError("entropy must have shape [..., seq], got ().")
  mask = check_mask(mask, entropy.shape)
  score = jnp.where(mask, jax.lax.stop_gradient(entropy), -jnp.inf)
  order = jnp.argsort(score, axis=-1, stable=True, descending=True)
  rank = jnp.argsort(order, axis=-1)
  return mask & (rank < _share_of_row(fraction, mask))


def check_fraction(fraction: float) -> None:
  """Raises ValueError unless `fraction` is in (0, 1]."""
  if not 0 < fraction <= 1:
    raise ValueError(f"fraction must be in (0, 1], got {fraction}.")


def gather_indices(
  score: jax.Array, eligible: jax.Array, *, capacity: int
) -> tuple[jax.Array, jax.Array]:
  """Picks at most `capacity` eligible tokens of each row, highest score first.

  Args:
    score: float, shape [batch, seq]; ignored where not eligible.
    eligible: bool, shape [batch, seq], true at tokens that may be picked.
    capacity: number of tokens to pick from a row, static, at most seq.

  Returns:
    indices int32 [batch, capacity] into seq, and valid bool [batch, capacity], false where a row
    has no further eligible token. Rows are independent, so sharding the batch changes nothing.
  """
  score = jnp.where(eligible, jax.lax.stop_gradient(score), -jnp.inf)
  best, indices = jax.lax.top_k(score, capacity)
  return indices, best > -jnp.inf


def row_capacity(fraction: float, seq: int) -> int:
  """Returns ceil(min(1, 2 fraction) seq), the most tokens of a row that can get the feature loss.

  Hard tokens cluster, so a row has room for twice its expected share; `running_feature_loss` counts
  the tokens beyond that.

  >>> row_capacity(0.25, 10), row_capacity(0.7, 10)
  (5, 10)
  """
  return _round_up(min(1.0, 2 * fraction) * seq)


def _share_of_row(fraction: float, mask: jax.Array) -> jax.Array:
  """Returns ceil(fraction n) for the n masked tokens of each row, shape [..., 1]."""
  return jnp.ceil(fraction * jnp.sum(mask, axis=-1, keepdims=True) - 1e-4)


def _round_up(count: float) -> int:
  """Returns the ceiling, at least 1, ignoring the rounding of products such as 0.1 * 30."""
  return max(1, math.ceil(count - 1e-9))
