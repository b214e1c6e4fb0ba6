"""The running distribution of entropy, in which each token's entropy has a position.

Ranks in a batch change with the size of the batch, its sharding and its micro-batches. The position
in a histogram of past tokens, whose counts decay with a half-life, depends on no other token of the
batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from egad_jax.losses.entropy import ENTROPY_FLOOR, median_ratio
from egad_jax.losses.probabilities import check_mask, promote

NUM_BINS = 256
MAX_ENTROPY = 16.0
"""Upper edge of the histogram in nats, above log(vocab) of any tokenizer.

The bins therefore do not depend on the vocabulary.
"""

EDGES = np.geomspace(ENTROPY_FLOOR, MAX_ENTROPY, NUM_BINS + 1).astype(np.float32)
"""Bin edges in nats, shape [257], log-spaced; in NumPy, so that importing touches no device."""

_LOG_EDGES = np.linspace(np.log(ENTROPY_FLOOR), np.log(MAX_ENTROPY), NUM_BINS + 1)
# Three-point Gauss-Legendre nodes and weights on [0, 1].
_NODES = 0.5 + np.array([-1.0, 0.0, 1.0]) * np.sqrt(0.15)
_NODE_WEIGHTS = np.array([5.0, 8.0, 5.0]) / 18.0


class EntropyDistribution(NamedTuple):
  """A histogram of entropy over 256 log-spaced bins, from 1e-6 to 16 nats; a pytree.

  The first and the last bin also hold the values beyond them, so they are atoms (a confident
  teacher has many tokens at H = 0): a token there has the position of the middle of the bin's mass,
  and the expected position of a token stays 1/2. Inner bins interpolate in log H.

  Attributes:
    mass: float32, shape [256]: the tokens of each bin, each counted as 2^(-age / half_life) with
      its age in tokens.

  >>> distribution = EntropyDistribution.init()
  >>> float(distribution.position(jnp.array(2.0)))  # Empty: no opinion.
  0.5
  >>> entropy, mask = jnp.array([0.0, 0.5, 2.0, 4.0]), jnp.array([True, True, True, False])
  >>> distribution = distribution.update(entropy, mask, half_life=1000.0)
  >>> [round(float(p), 3) for p in distribution.position(jnp.array([0.0, 1.0, 4.0]))]
  [0.167, 0.667, 1.0]
  """

  mass: jax.Array

  @classmethod
  def init(cls) -> EntropyDistribution:
    """Returns the empty distribution."""
    return cls(mass=jnp.zeros(NUM_BINS, jnp.float32))

  def update(
    self, entropy: ArrayLike, mask: ArrayLike, *, half_life: ArrayLike
  ) -> EntropyDistribution:
    """Adds tokens: mass 2^(-n / half_life) + counts, where n is the number of masked tokens.

    Counts are integers, so neither order nor sharding changes a bit of the result.

    Args:
      entropy: nats, shape [...], of all tokens of the global batch.
      mask: bool, shape [...], true at tokens that count; what `entropy` holds elsewhere is ignored.
      half_life: number of later tokens after which a token counts half; > 0.

    Returns:
      The new distribution; this one, bit for bit, when no token counts.
    """
    entropy = jax.lax.stop_gradient(promote("entropy", entropy))
    mask = check_mask(mask, entropy.shape)
    added = mask.reshape(-1).astype(jnp.int32)
    counts = jnp.zeros(NUM_BINS, jnp.int32).at[_bin(entropy).reshape(-1)].add(added)
    kept = self.mass * jnp.exp2(-jnp.sum(added) / jnp.asarray(half_life, jnp.float32))
    return EntropyDistribution(kept + counts)

  def position(self, entropy: ArrayLike, kind: str = "cdf") -> jax.Array:
    """Returns the position of each entropy in [0, 1]; 1/2 while the distribution is empty.

    Args:
      entropy: nats, shape [...].
      kind: "cdf", the mass below plus the interpolated part of the token's own bin, uniform in
        expectation; or "median_ratio", H^2 / (H^2 + median^2).

    Returns:
      Positions, at least float32, shape [...], nondecreasing in entropy, detached.

    Raises:
      TypeError: `entropy` is not floating point.
      ValueError: `kind` is unknown.
    """
    entropy = jax.lax.stop_gradient(promote("entropy", entropy))
    if kind == "median_ratio":
      answer = median_ratio(entropy, self.quantile(0.5))
    elif kind == "cdf":
      index = _bin(entropy)
      up_to = jnp.cumsum(self._shares())
      below = jnp.concatenate([jnp.zeros_like(up_to[:1]), up_to[:-1]])[index]
      answer = below + _part_of_bin(entropy, index) * (up_to[index] - below)
      answer = jnp.clip(answer, 0.0, 1.0)
    else:
      raise ValueError(f"kind must be one of cdf, median_ratio, got {kind!r}.")
    return jnp.where(jnp.sum(self.mass) > 0, answer, 0.5)

  def quantile(self, q: ArrayLike) -> jax.Array:
    """Returns the entropy in nats below which a share `q` in [0, 1] of the mass lies, q's shape.

    Inside a bin the quantile interpolates in log H. An empty distribution counts as one with equal
    mass in all bins.
    """
    shares = self._shares()
    up_to = jnp.cumsum(shares)
    target = q * up_to[-1]
    index = jnp.searchsorted(up_to, target, side="left", method="compare_all")
    # A bin with mass: where the cumulated mass first reaches the target, it has just grown.
    index = jnp.maximum(index, jnp.argmax(shares > 0))
    below = up_to[index] - shares[index]
    part = (target - below) / shares[index]
    log_edges = jnp.asarray(_LOG_EDGES, jnp.float32)
    width = log_edges[index + 1] - log_edges[index]
    return jnp.exp(log_edges[index] + jnp.clip(part, 0.0, 1.0) * width)

  def top_share(self, entropy: ArrayLike, fraction: ArrayLike) -> jax.Array:
    """Returns the share of each token to keep so that the top `fraction` of the mass is kept.

    The share is 1 in the bins above the cut and 0 below; the tokens of the bin that contains the
    cut, which the distribution cannot tell apart, all get the share that is missing. The expected
    share is then met even where all tokens are nearly the same, as they are for an untrained
    student: with a threshold all or none of them would pass, and with none nothing would be
    trained.

    Args:
      entropy: nats (or another quantity that the histogram holds), float, shape [...].
      fraction: share of the mass to keep, a scalar in (0, 1], which may be traced.

    Returns:
      Shares in [0, 1], at least float32, shape [...], nondecreasing in entropy, detached;
      `fraction` for all while the distribution is empty.

    Raises:
      TypeError: `entropy` is not floating point.

    >>> entropy, mask = jnp.array([0.1, 2.0, 2.0, 2.0, 3.0]), jnp.ones(5, bool)
    >>> distribution = EntropyDistribution.init().update(entropy, mask, half_life=1e9)
    >>> [round(float(share), 4) for share in distribution.top_share(entropy, 0.4)]
    [0.0, 0.3333, 0.3333, 0.3333, 1.0]
    """
    entropy = jax.lax.stop_gradient(promote("entropy", entropy))
    fraction = jax.lax.stop_gradient(jnp.asarray(fraction, jnp.float32))
    total = jnp.sum(self.mass)
    mass = self.mass / jnp.where(total > 0, total, 1)
    missing = fraction - (1 - jnp.cumsum(mass))
    share = jnp.where(mass > 0, missing / jnp.where(mass > 0, mass, 1), missing > 0)
    # A fraction of 1 keeps everything, even where the sum of the masses rounds to more than 1.
    share = jnp.where(fraction < 1, jnp.clip(share, 0, 1), 1)
    kept = jnp.where(total > 0, share[_bin(entropy)], fraction)
    return jax.lax.stop_gradient(kept).astype(entropy.dtype)

  def expectation(self, function: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns the mean of `function(entropy)` over the distribution, a scalar.

    Args:
      function: elementwise, entropies in nats -> values of the same shape. Evaluated at three
        Gauss-Legendre points of every bin.

    Returns:
      The expectation; an empty distribution counts as one with equal mass in all bins.
    """
    width = np.diff(_LOG_EDGES)[:, None]
    entropies = np.exp(_LOG_EDGES[:-1, None] + width * _NODES).astype(np.float32)
    weights = jnp.asarray(_NODE_WEIGHTS, jnp.float32)
    values = function(jnp.asarray(entropies))
    return jnp.sum(self._shares()[:, None] * weights[None, :] * values)

  def _shares(self) -> jax.Array:
    """Returns the mass of each bin over the total, shape [256]; equal shares when it is 0."""
    total = jnp.sum(self.mass)
    return jnp.where(total > 0, self.mass / jnp.where(total > 0, total, 1.0), 1.0 / NUM_BINS)


def _bin(entropy: jax.Array) -> jax.Array:
  """Returns each entropy's bin, int32 [...]; exact on any device, as it only compares."""
  return jnp.searchsorted(EDGES[1:-1], entropy, side="right", method="compare_all")


def _part_of_bin(entropy: jax.Array, index: jax.Array) -> jax.Array:
  """Returns the share of its bin that lies below each entropy, in [0, 1]; 1/2 in an atom."""
  width = (np.log(MAX_ENTROPY) - np.log(ENTROPY_FLOOR)) / NUM_BINS
  log_entropy = jnp.log(jnp.clip(entropy, ENTROPY_FLOOR, MAX_ENTROPY))
  part = (log_entropy - np.log(ENTROPY_FLOOR)) / width - index
  is_atom = (index == 0) | (index == NUM_BINS - 1)
  return jnp.where(is_atom, 0.5, jnp.clip(part, 0.0, 1.0))
