"""Mutations of the running distribution."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_DISTRIBUTION = [
  (
    "mask",
    "counts every token",
    "added = mask.reshape(-1).astype(jnp.int32)",
    "added = jnp.ones_like(mask.reshape(-1), jnp.int32)",
  ),
  (
    "reduction",
    "one token per bin",
    "[_bin(entropy).reshape(-1)].add(added)",
    "[_bin(entropy).reshape(-1)].max(added)",
  ),
  (
    "normaliser",
    "the half-life counts updates",
    "tokens = jnp.sum(added)\n",
    "tokens = jnp.minimum(jnp.sum(added), 1)\n",
  ),
  (
    "normaliser",
    "the half-life counts tokens outside the mask",
    "tokens = jnp.sum(added)\n",
    "tokens = jnp.int32(added.size)\n",
  ),
  ("sign", "old tokens grow", "jnp.exp2(-tokens", "jnp.exp2(tokens"),
  ("normaliser", "e for 2: a mean life", "jnp.exp2(-tokens", "jnp.exp(-tokens"),
  (
    "mask",
    "new tokens replace the old ones",
    "jnp.where(tokens > 0, kept + counts, self.mass)",
    "jnp.where(tokens > 0, counts.astype(jnp.float32), self.mass)",
  ),
  (
    "comparison",
    "an update of one token is lost",
    "jnp.where(tokens > 0, kept + counts, self.mass)",
    "jnp.where(tokens > 1, kept + counts, self.mass)",
  ),
  (
    "stop-gradient",
    "gradient flows through a position",
    'entropy = jax.lax.stop_gradient(promote("entropy", entropy))\n    if kind',
    'entropy = promote("entropy", entropy)\n    if kind',
  ),
  ("options", "a quartile for the median", "self.quantile(0.5)", "self.quantile(0.25)"),
  (
    "off by one",
    "the mass below includes the token's own bin",
    "below = jnp.concatenate([jnp.zeros_like(up_to[:1]), up_to[:-1]])[index]",
    "below = up_to[index] - 0 * up_to[index]",
  ),
  (
    "off by one",
    "an atom answers the end of its mass",
    "return jnp.where(is_atom, 0.5, jnp.clip(part, 0.0, 1.0))",
    "return jnp.where(is_atom, 1.0, jnp.clip(part, 0.0, 1.0))",
  ),
  (
    "sign",
    "interpolates downwards",
    "answer = below + _part_of_bin(entropy, index) * (up_to[index] - below)",
    "answer = up_to[index] - _part_of_bin(entropy, index) * (up_to[index] - below)",
  ),
  (
    "mask",
    "an empty distribution has an opinion",
    "return jnp.where(jnp.sum(self.mass) > 0, answer, 0.5)",
    "return answer",
  ),
  (
    "comparison",
    "a quantile at the end of a bin's mass is in the next bin",
    'index = jnp.searchsorted(up_to, target, side="left", method="compare_all")',
    'index = jnp.searchsorted(up_to, target, side="right", method="compare_all")',
  ),
  (
    "clip",
    "the 0-quantile is in an empty bin",
    "jnp.clip(index, jnp.argmax(shares > 0), NUM_BINS - 1)",
    "jnp.clip(index, 0, NUM_BINS - 1)",
  ),
  (
    "off by one",
    "a quantile is relative to the end of its bin",
    "below = up_to[index] - shares[index]",
    "below = up_to[index]",
  ),
  (
    "double where",
    "no guard against a bin without mass",
    "part = (target - below) / jnp.where(shares[index] > 0, shares[index], 1.0)",
    "part = target - below",
  ),
  (
    "clip",
    "a quantile outside its bin",
    "log_edges[index] + jnp.clip(part, 0.0, 1.0) * width",
    "log_edges[index] + (part + 1) * width",
  ),
  (
    "sign",
    "top share: the bins of low entropy",
    "missing = fraction - (1 - jnp.cumsum(mass))",
    "missing = fraction - jnp.cumsum(mass) + mass",
  ),
  (
    "off by one",
    "top share: from position `fraction` on",
    "missing = fraction - (1 - jnp.cumsum(mass))",
    "missing = 1 - fraction - (1 - jnp.cumsum(mass))",
  ),
  (
    "normaliser",
    "top share: the bin in between is kept whole",
    "jnp.clip(share, 0, 1), 1)",
    "jnp.ceil(jnp.clip(share, 0, 1)), 1)",
  ),
  (
    "clip",
    "top share: shares beyond [0, 1]",
    "jnp.clip(share, 0, 1), 1)",
    "share, 1)",
  ),
  (
    "off by one",
    "top share: rounding drops a rare bin from the whole",
    "share = jnp.where(fraction < 1, jnp.clip(share, 0, 1), 1)",
    "share = jnp.clip(share, 0, 1)",
  ),
  (
    "normaliser",
    "top share: mass instead of its shares",
    "mass = self.mass / jnp.where(total > 0, total, 1)\n",
    "mass = self.mass\n",
  ),
  (
    "double where",
    "top share: 0 / 0 in a bin without mass",
    "share = jnp.where(mass > 0, missing / jnp.where(mass > 0, mass, 1), missing > 0)",
    "share = missing / mass",
  ),
  (
    "mask",
    "top share: an empty distribution keeps nothing",
    "share[_bin(entropy)], fraction)",
    "share[_bin(entropy)], 0)",
  ),
  (
    "stop-gradient",
    "top share: gradient flows through the mass",
    "return jax.lax.stop_gradient(kept).astype(entropy.dtype)",
    "return kept.astype(entropy.dtype)",
  ),
  (
    "promotion",
    "top share: float64 becomes float32",
    "return jax.lax.stop_gradient(kept).astype(entropy.dtype)",
    "return jax.lax.stop_gradient(kept)",
  ),
  (
    "axis",
    "an expectation over the wrong axis of the nodes",
    "self._shares()[:, None] * weights[None, :] * values",
    "self._shares()[:, None] * weights[::-1][None, :] * values[::-1]",
  ),
  (
    "normaliser",
    "an expectation without the shares",
    "self._shares()[:, None] * weights[None, :] * values",
    "weights[None, :] * values / NUM_BINS",
  ),
  (
    "normaliser",
    "quadrature weights that do not add up to 1",
    "np.array([5.0, 8.0, 5.0]) / 18.0",
    "np.array([5.0, 8.0, 5.0]) / 16.0",
  ),
  (
    "normaliser",
    "mass instead of shares",
    "jnp.where(total > 0, self.mass / jnp.where(total > 0, total, 1.0), 1.0 / NUM_BINS)",
    "jnp.where(total > 0, self.mass, 1.0 / NUM_BINS)",
  ),
  (
    "double where",
    "0 / 0 in an empty distribution",
    "jnp.where(total > 0, self.mass / jnp.where(total > 0, total, 1.0), 1.0 / NUM_BINS)",
    "self.mass / total",
  ),
  (
    "comparison",
    "an entropy at an edge is in the bin below",
    'jnp.searchsorted(inner, entropy, side="right"',
    'jnp.searchsorted(inner, entropy, side="left"',
  ),
  (
    "off by one",
    "bins start one later",
    "inner = jnp.asarray(EDGES[1:-1])",
    "inner = jnp.asarray(EDGES[:-2])",
  ),
  (
    "mask",
    "the first bin is no atom",
    "is_atom = (index == 0) | (index == NUM_BINS - 1)",
    "is_atom = index == NUM_BINS - 1",
  ),
  (
    "mask",
    "the last bin is no atom",
    "is_atom = (index == 0) | (index == NUM_BINS - 1)",
    "is_atom = index == 0",
  ),
  (
    "clip",
    "the logarithm of an entropy of 0",
    "log_entropy = jnp.log(jnp.clip(entropy, ENTROPY_FLOOR, MAX_ENTROPY))",
    "log_entropy = entropy",
  ),
]

MUTATIONS = of_file("losses/distribution.py", ["losses/distribution_test.py"], _DISTRIBUTION)

EQUIVALENTS = (
  Equivalent(
    "losses/distribution.py",
    "drop one of the first two stop-gradients of `top_share`",
    "what it returns is detached again, and the entropies only choose a bin",
  ),
  Equivalent(
    "losses/distribution.py",
    "drop the guard of `top_share` against an empty distribution's 0 / 0",
    "the result is detached, so the guard protects no gradient and the value is selected away",
  ),
  Equivalent(
    "losses/distribution.py",
    "drop the stop-gradient of `update`",
    "counts are integers: no gradient passes them",
  ),
  Equivalent(
    "losses/distribution.py",
    "drop the clip of `position` to [0, 1]",
    "a cumulative sum of 256 float32 shares may end a few roundings above 1; no input shows it on"
    " every backend",
  ),
)
