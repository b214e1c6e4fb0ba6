"""Mutations of the dual branch: routing, features, gates."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_ROUTING = [
  (
    "sign",
    "the easiest tokens are taken",
    "score = jnp.where(eligible, jax.lax.stop_gradient(score), -jnp.inf)",
    "score = jnp.where(eligible, -jax.lax.stop_gradient(score), -jnp.inf)",
  ),
  (
    "mask",
    "tokens that are not eligible are taken",
    "score = jnp.where(eligible, jax.lax.stop_gradient(score), -jnp.inf)",
    "score = jax.lax.stop_gradient(score)",
  ),
  (
    "mask",
    "empty places are valid",
    "return indices, best > -jnp.inf",
    "return indices, best >= -jnp.inf",
  ),
  (
    "comparison",
    "one token too many",
    "valid & (jnp.arange(capacity)[None, :] < wanted)",
    "valid & (jnp.arange(capacity)[None, :] <= wanted)",
  ),
  (
    "mask",
    "a share of the places, not of the masked tokens",
    "return indices, valid & (jnp.arange(capacity)[None, :] < wanted)",
    "return indices, valid",
  ),
  (
    "off by one",
    "a share rounded down",
    "jnp.ceil(fraction * jnp.sum(mask, axis=-1, keepdims=True) - 1e-4)",
    "jnp.floor(fraction * jnp.sum(mask, axis=-1, keepdims=True) + 1e-4)",
  ),
  (
    "off by one",
    "rounding of a product adds a token",
    "jnp.ceil(fraction * jnp.sum(mask, axis=-1, keepdims=True) - 1e-4)",
    "jnp.ceil(fraction * jnp.sum(mask, axis=-1, keepdims=True) + 1e-4)",
  ),
  (
    "axis",
    "a share of the batch, not of the row",
    "jnp.ceil(fraction * jnp.sum(mask, axis=-1, keepdims=True) - 1e-4)",
    "jnp.ceil(fraction * jnp.sum(mask, keepdims=True) - 1e-4)",
  ),
  (
    "sign",
    "the tokens of lowest entropy are marked",
    "stable=True, descending=True)",
    "stable=True, descending=False)",
  ),
  (
    "comparison",
    "marks one token too many",
    "return mask & (rank < _share_of_row(fraction, mask))",
    "return mask & (rank <= _share_of_row(fraction, mask))",
  ),
  (
    "mask",
    "tokens outside the mask take ranks",
    "score = jnp.where(mask, jax.lax.stop_gradient(entropy), -jnp.inf)",
    "score = jax.lax.stop_gradient(entropy)",
  ),
  (
    "normaliser",
    "a row keeps its expected share of places, not twice it",
    "_round_up(min(1.0, 2 * fraction) * seq)",
    "_round_up(min(1.0, fraction) * seq)",
  ),
  (
    "off by one",
    "places rounded up by the rounding of a product",
    "math.ceil(count - 1e-9)",
    "math.ceil(count + 1e-9)",
  ),
]

_FEATURES = [
  (
    "sign",
    "1 + cosine",
    "return 1 - jnp.sum(unit(student) * unit(teacher), axis=-1)",
    "return 1 + jnp.sum(unit(student) * unit(teacher), axis=-1)",
  ),
  (
    "normaliser",
    "the teacher's features are not of norm 1",
    "return 1 - jnp.sum(unit(student) * unit(teacher), axis=-1)",
    "return 1 - jnp.sum(unit(student) * teacher, axis=-1)",
  ),
  (
    "normaliser",
    "unit norm instead of unit variance",
    "return jnp.mean((root_dim * difference) ** 2, axis=-1)",
    "return jnp.mean(difference**2, axis=-1)",
  ),
  (
    "reduction",
    "sum for mean",
    "return jnp.mean((root_dim * difference) ** 2, axis=-1)",
    "return jnp.sum((root_dim * difference) ** 2, axis=-1)",
  ),
  (
    "temperature",
    "absolute for squared differences",
    "return jnp.mean((root_dim * difference) ** 2, axis=-1)",
    "return jnp.mean(jnp.abs(root_dim * difference), axis=-1)",
  ),
  (
    "normaliser",
    "the student's features are not centred",
    "unit(_centred(student)) - unit(_centred(teacher))",
    "unit(student) - unit(_centred(teacher))",
  ),
  (
    "axis",
    "centred over the tokens",
    "return vector - jnp.mean(vector, axis=-1, keepdims=True)",
    "return vector - jnp.mean(vector, axis=0, keepdims=True)",
  ),
  (
    "stop-gradient",
    "gradient flows to the teacher's features",
    "return student, jax.lax.stop_gradient(teacher)",
    "return student, teacher",
  ),
  (
    "stop-gradient",
    "pairs: gradient flows to the teacher's features",
    'teacher = jax.lax.stop_gradient(promote("teacher_features", teacher_features))',
    'teacher = promote("teacher_features", teacher_features) + 0',
  ),
  (
    "stop-gradient",
    "pairs: gradient flows to the weights",
    'weight = jax.lax.stop_gradient(promote("weight", weight))',
    'weight = promote("weight", weight)',
  ),
  (
    "mask",
    "pairs: a token is its own other",
    "others = jnp.where(row == column, 0, weight[..., None, :])",
    "others = jnp.where(row == column, weight[..., None, :], weight[..., None, :])",
  ),
  (
    "axis",
    "pairs: weighted by the token instead of the other",
    "others = jnp.where(row == column, 0, weight[..., None, :])",
    "others = jnp.where(row == column, 0, weight[..., :, None])",
  ),
  (
    "axis",
    "pairs: the norm is over the tokens",
    "total = jnp.sum(others * difference**2, axis=-1)",
    "total = jnp.sum(others * difference**2, axis=-2)",
  ),
  (
    "temperature",
    "pairs: differences are not squared",
    "total = jnp.sum(others * difference**2, axis=-1)",
    "total = jnp.sum(others * jnp.abs(difference), axis=-1)",
  ),
  (
    "normaliser",
    "pairs: not over the weights",
    "return total / jnp.maximum(jnp.sum(others, axis=-1), 1)",
    "return total",
  ),
  (
    "clip",
    "pairs: 0 / 0 for a token without others",
    "return total / jnp.maximum(jnp.sum(others, axis=-1), 1)",
    "return total / jnp.sum(others, axis=-1)",
  ),
  (
    "mask",
    "empty places hold a token",
    "return jnp.where(valid[None, :, :, None], taken, 0)",
    "return taken",
  ),
  (
    "normaliser",
    "pairs: the vectors are not of norm 1",
    "vectors = unit(features)",
    "vectors = features",
  ),
  (
    "double where",
    "0 / 0 at the zero vector",
    "return features / jnp.sqrt(jnp.where(squared > 0, squared, 1))",
    "return features / jnp.sqrt(squared)",
  ),
  (
    "double where",
    "the slope of sqrt at the zero vector",
    "return features / jnp.sqrt(jnp.where(squared > 0, squared, 1))",
    "return features / jnp.where(squared > 0, jnp.sqrt(squared), 1)",
  ),
  (
    "axis",
    "all taps share the first projector",
    'jnp.einsum("k...d,kde->k...e", features, params["kernel"])',
    'jnp.einsum("k...d,de->k...e", features, params["kernel"][0])',
  ),
]

_BRANCH = [
  (
    "comparison",
    "a token at the threshold is easy",
    "return (position >= hard_from).astype(position.dtype)",
    "return (position > hard_from).astype(position.dtype)",
  ),
  (
    "sign",
    "low positions are hard",
    "return (position >= hard_from).astype(position.dtype)",
    "return (position <= hard_from).astype(position.dtype)",
  ),
  (
    "sign",
    "the soft gate falls",
    "return jax.nn.sigmoid((position - hard_from) / self.softness)",
    "return jax.nn.sigmoid((hard_from - position) / self.softness)",
  ),
  (
    "normaliser",
    "the softness is ignored",
    "return jax.nn.sigmoid((position - hard_from) / self.softness)",
    "return jax.nn.sigmoid(position - hard_from)",
  ),
  (
    "sign",
    "the share of hard tokens is that of the easy ones",
    "    if self.softness == 0:\n      return 1 - hard_from\n",
    "    if self.softness == 0:\n      return hard_from\n",
  ),
  (
    "normaliser",
    "the expected soft gate without its softness",
    "return self.softness * (jax.nn.softplus(ends[0]) - jax.nn.softplus(ends[1]))",
    "return jax.nn.softplus(ends[0]) - jax.nn.softplus(ends[1])",
  ),
  (
    "sign",
    "the expected soft gate is negative",
    "return self.softness * (jax.nn.softplus(ends[0]) - jax.nn.softplus(ends[1]))",
    "return self.softness * (jax.nn.softplus(ends[1]) - jax.nn.softplus(ends[0]))",
  ),
  (
    "off by one",
    "hard from position hard_fraction",
    "    return 1 - branch.hard_fraction\n  return distribution",
    "    return branch.hard_fraction\n  return distribution",
  ),
  (
    "normaliser",
    "the feature loss is not over the expected share",
    "total = branch.weight * jnp.sum(jnp.sum(taken * distance, axis=1) / share)",
    "total = branch.weight * jnp.sum(jnp.sum(taken * distance, axis=1))",
  ),
  (
    "normaliser",
    "the feature loss without its weight",
    "total = branch.weight * jnp.sum(jnp.sum(taken * distance, axis=1) / share)",
    "total = jnp.sum(jnp.sum(taken * distance, axis=1) / share)",
  ),
  (
    "mask",
    "the gate does not weigh the feature loss",
    "total = branch.weight * jnp.sum(jnp.sum(taken * distance, axis=1) / share)",
    "total = branch.weight * jnp.sum(jnp.sum(distance, axis=1) / share)",
  ),
  (
    "clip",
    "a share of 0 divides",
    "share = jnp.maximum(share, _SMALLEST_SHARE)",
    "share = jnp.asarray(share)",
  ),
  (
    "stop-gradient",
    "gradient flows through the metric",
    '"feature_loss": (jax.lax.stop_gradient(total)',
    '"feature_loss": (total',
  ),
  (
    "normaliser",
    "in-batch: the sum instead of the mean",
    "return branch.weight * jnp.sum(taken * distance) / jnp.maximum(jnp.sum(taken), 1)",
    "return branch.weight * jnp.sum(taken * distance)",
  ),
  (
    "normaliser",
    "in-batch: over the tokens instead of the gates",
    "return branch.weight * jnp.sum(taken * distance) / jnp.maximum(jnp.sum(taken), 1)",
    "return branch.weight * jnp.sum(taken * distance) / jnp.maximum(taken.size, 1)",
  ),
  (
    "clip",
    "in-batch: 0 / 0 without hard tokens",
    "return branch.weight * jnp.sum(taken * distance) / jnp.maximum(jnp.sum(taken), 1)",
    "return branch.weight * jnp.sum(taken * distance) / jnp.sum(taken)",
  ),
  (
    "sign",
    'the control "easy" gathers the hardest',
    'score = -entropy if branch.tokens == "easy" else entropy',
    "score = entropy",
  ),
  (
    "mask",
    "places without a token have a gate",
    "gate = jnp.where(valid, jnp.take_along_axis(gate, indices, axis=1), 0)",
    "gate = jnp.take_along_axis(gate, indices, axis=1) + (1 - valid)",
  ),
  (
    "mask",
    "features outside the mask reach the maths",
    "student_taps, teacher_taps = (jnp.where(inside, t, 0) for t in (student_taps, teacher_taps))",
    "del inside",
  ),
  (
    "reduction",
    "taps are summed",
    "return jnp.mean(distance, axis=0), gate",
    "return jnp.sum(distance, axis=0), gate",
  ),
  (
    "mask",
    "the gate reaches outside the mask",
    "return jnp.where(mask, gate, 0)",
    "return gate",
  ),
  (
    "sign",
    'the control "easy" takes the hard tokens',
    '"easy": 1 - hard}[branch.tokens]',
    '"easy": hard}[branch.tokens]',
  ),
]

MUTATIONS = (
  *of_file(
    "losses/routing.py",
    ["losses/routing_test.py", "losses/branch_test.py"],
    _ROUTING,
  ),
  *of_file("losses/features.py", ["losses/features_test.py", "losses/branch_test.py"], _FEATURES),
  *of_file("losses/branch.py", ["losses/branch_test.py", "losses/egad_test.py"], _BRANCH),
)

EQUIVALENTS = (
  Equivalent(
    "losses/routing.py",
    "drop the stop-gradients of the scores",
    "what leaves are indices and bools: no gradient passes them",
  ),
)
