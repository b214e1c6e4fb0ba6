"""Entropy of next-token distributions, and the position of a token's entropy in its batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import check_logits, check_mask, log_probabilities, promote
from egad_jax.losses.reductions import masked_median

ENTROPY_FLOOR = 1e-6
"""Entropies in nats are raised to this floor: a certain teacher has H = 0, and log 0 is -inf."""


def token_entropy(logits: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
  """Returns the entropy of each next-token distribution in nats, H = -sum_v p_v log p_v.

  Args:
    logits: float, shape [..., vocab]. Entries may be -inf (padded vocabulary).
    where: bool, shape [vocab], true at real vocabulary entries; None counts all.

  Returns:
    Entropy with 0 log 0 = 0, in [0, log vocab], at least float32, shape [...]. Differentiable:
    dH/dz = -p (log p + H). The losses detach it.

  Raises:
    TypeError: `logits` are not floating point.
    ValueError: `where` has the wrong shape.

  >>> round(float(token_entropy(jnp.array([2.0, 1.0, 0.0, -1.0]))), 4)
  0.9475
  >>> round(float(token_entropy(jnp.array([3.0, 3.0, -jnp.inf]))), 4)  # log 2
  0.6931
  """
  return entropy_of(log_probabilities(check_logits("logits", logits), where=where))


def entropy_of(log_p: jax.Array) -> jax.Array:
  """Returns the entropy in nats, [...], of log-probabilities [..., vocab]."""
  return jnp.sum(-jnp.exp(log_p) * log_p, axis=-1)


def entropy_position(entropy: ArrayLike, mask: ArrayLike, *, kind: str = "rank") -> jax.Array:
  """Returns the position of each entropy among the masked tokens of its batch, in [0, 1].

  The in-batch counterpart of `EntropyDistribution.position`. All leading axes form one batch.

  Args:
    entropy: nats, shape [...]. Values outside the mask are ignored.
    mask: bool, shape [...], true at tokens that count.
    kind: "rank", the rank over n-1, averaged over ties; "minmax", (H - min) / (max - min);
      "median_ratio", H^2 / (H^2 + median^2) with H and the median floored at 1e-6 nats, so that
      2 position - 1 = tanh(log(H / median)), the scale-free form of AdaKD (arXiv 2510.11615).

  Returns:
    Positions, shape [...], detached; 1/2 outside the mask, for a lone token, and where all
    entropies are equal.

  Raises:
    TypeError: `entropy` is not floating point.
    ValueError: shapes differ or `kind` is unknown.

  >>> entropy_position(jnp.array([0.1, 0.2, 0.2, 0.8, 9.0]), jnp.array([1, 1, 1, 1, 0])).tolist()
  [0.0, 0.5, 0.5, 1.0, 0.5]
  """
  entropy = jax.lax.stop_gradient(promote("entropy", entropy))
  mask = check_mask(mask, entropy.shape)
  kinds = {"rank": _rank, "minmax": _minmax, "median_ratio": _median_ratio}
  if kind not in kinds:
    raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}.")
  return jnp.where(mask, kinds[kind](entropy, mask), 0.5)


def median_ratio(entropy: jax.Array, median: jax.Array) -> jax.Array:
  """Returns H^2 / (H^2 + median^2), both floored at `ENTROPY_FLOOR`; 1/2 at the median."""
  ratio = jnp.maximum(median, ENTROPY_FLOOR) / jnp.maximum(entropy, ENTROPY_FLOOR)
  return 1.0 / (1.0 + ratio**2)


def _rank(entropy: jax.Array, mask: jax.Array) -> jax.Array:
  flat = jnp.where(mask, entropy, jnp.inf).reshape(-1)
  ordered = jnp.sort(flat)
  below = jnp.searchsorted(ordered, flat, side="left", method="sort")
  up_to = jnp.searchsorted(ordered, flat, side="right", method="sort")
  rank = (below + up_to - 1).astype(entropy.dtype) / 2
  others = jnp.sum(mask) - 1
  return jnp.where(others > 0, rank / jnp.maximum(others, 1), 0.5).reshape(entropy.shape)


def _minmax(entropy: jax.Array, mask: jax.Array) -> jax.Array:
  low = jnp.min(entropy, where=mask, initial=jnp.inf)
  high = jnp.max(entropy, where=mask, initial=-jnp.inf)
  spread = high - low
  return jnp.where(spread > 0, (entropy - low) / jnp.where(spread > 0, spread, 1), 0.5)


def _median_ratio(entropy: jax.Array, mask: jax.Array) -> jax.Array:
  return median_ratio(entropy, masked_median(entropy, mask))
