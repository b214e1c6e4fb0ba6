"""Mutations of TRG's graph terms."""

from __future__ import annotations

from tests.mutation.mutant import Equivalent, of_file

_TOKEN_GRAPH = [
  (
    "sign",
    "the products are added",
    "- 2 * _products(vectors, vectors), 0)",
    "+ 2 * _products(vectors, vectors), 0)",
  ),
  (
    "normaliser",
    "the products count once",
    "- 2 * _products(vectors, vectors), 0)",
    "- _products(vectors, vectors), 0)",
  ),
  (
    "mask",
    "a node is its own neighbour",
    "candidates = _pairs(mask) & (row != column)",
    "candidates = _pairs(mask) & (row >= 0)",
  ),
  (
    "mask",
    "invalid nodes are neighbours",
    "candidates = _pairs(mask) & (row != column)",
    "candidates = row != column",
  ),
  (
    "sign",
    "the farthest nodes are neighbours",
    "jnp.where(candidates, -jax.lax.stop_gradient(distances), -jnp.inf)",
    "jnp.where(candidates, jax.lax.stop_gradient(distances), -jnp.inf)",
  ),
  (
    "off by one",
    "one neighbour too few",
    "places = max(1, min(neighbours, distances.shape[-1] - 1))",
    "places = max(1, min(neighbours - 1, distances.shape[-1] - 1))",
  ),
  (
    "mask",
    "empty places are valid",
    "return indices, best > -jnp.inf",
    "return indices, best >= -jnp.inf",
  ),
  (
    "mask",
    "the median reads invalid places",
    "flat = jnp.where(valid, jax.lax.stop_gradient(distances), jnp.inf)",
    "flat = jax.lax.stop_gradient(distances)",
  ),
  (
    "off by one",
    "the upper median",
    "lower = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0) // 2, axis=-1)",
    "lower = jnp.take_along_axis(ordered, count // 2, axis=-1)",
  ),
  (
    "clip",
    "a median of 0 divides",
    "return jnp.maximum(median, SMALLEST_SIGMA)",
    "return median",
  ),
  (
    "stop-gradient",
    "local: gradient flows to the teacher",
    "teacher = squared_distances(unit(jax.lax.stop_gradient(teacher_features)))",
    "teacher = squared_distances(unit(teacher_features))",
  ),
  (
    "normaliser",
    "local: the student's vectors are not of norm 1",
    "student = squared_distances(unit(student_features))",
    "student = squared_distances(student_features)",
  ),
  (
    "swap",
    "local: the student's neighbours",
    "indices, valid = nearest_neighbours(teacher, mask",
    "indices, valid = nearest_neighbours(student, mask",
  ),
  (
    "sign",
    "local: far nodes have strong edges",
    "_log_softmax(jnp.exp(-d / (2 * width)), valid)",
    "_log_softmax(jnp.exp(d / (2 * width)), valid)",
  ),
  (
    "normaliser",
    "local: sigma for 2 sigma",
    "_log_softmax(jnp.exp(-d / (2 * width)), valid)",
    "_log_softmax(jnp.exp(-d / width), valid)",
  ),
  (
    "mask",
    "local: empty places take part in the softmax",
    "_log_softmax(jnp.exp(-d / (2 * width)), valid)",
    "_log_softmax(jnp.exp(-d / (2 * width)), valid | True)",
  ),
  (
    "swap",
    "local: the directions change places",
    'if direction == "teacher_to_student":',
    'if direction != "teacher_to_student":',
  ),
  (
    "sign",
    "local: the terms without the part that sums to 0 have the wrong sign",
    "return jnp.sum(jnp.exp(log_q) * (gap + jnp.expm1(-gap)), axis=-1)",
    "return jnp.sum(jnp.exp(log_q) * (jnp.expm1(-gap) - gap), axis=-1)",
  ),
  (
    "swap",
    "local: weighted by the other side",
    "return jnp.sum(jnp.exp(log_q) * (gap + jnp.expm1(-gap)), axis=-1)",
    "return jnp.sum(jnp.exp(log_p) * (gap + jnp.expm1(-gap)), axis=-1)",
  ),
  (
    "stop-gradient",
    "contextual: gradient flows to the teacher",
    "_products(student, jax.lax.stop_gradient(teacher)) / temperature",
    "_products(student, teacher) / temperature",
  ),
  (
    "stop-gradient",
    "contextual: gradient flows to the temperature",
    "temperature = jax.lax.stop_gradient(jnp.asarray(temperature, student.dtype))",
    "temperature = jnp.asarray(temperature, student.dtype)",
  ),
  (
    "temperature",
    "contextual: multiplies by tau",
    "_products(student, jax.lax.stop_gradient(teacher)) / temperature",
    "_products(student, jax.lax.stop_gradient(teacher)) * temperature",
  ),
  (
    "axis",
    "contextual: the teacher finds the student",
    "_products(student, jax.lax.stop_gradient(teacher)) / temperature",
    "_products(jax.lax.stop_gradient(teacher), student) / temperature",
  ),
  (
    "mask",
    "contextual: invalid nodes are negatives",
    "log_p = _log_softmax(similarity, _columns(mask, similarity.shape))",
    "log_p = jax.nn.log_softmax(similarity, axis=-1)",
  ),
  (
    "sign",
    "contextual: plus the logarithm",
    "return -jnp.diagonal(log_p, axis1=-2, axis2=-1)",
    "return jnp.diagonal(log_p, axis1=-2, axis2=-1)",
  ),
  (
    "stop-gradient",
    "inner: gradient flows to the teacher",
    "student, teacher = unit(student_features), unit(jax.lax.stop_gradient(teacher_features))",
    "student, teacher = unit(student_features), unit(teacher_features)",
  ),
  (
    "mask",
    "inner: invalid columns count",
    "jnp.exp(_log_softmax(cosine / temperature, columns))",
    "jnp.exp(jax.nn.log_softmax(cosine / temperature, axis=-1))",
  ),
  (
    "temperature",
    "inner: multiplies by the temperature",
    "jnp.exp(_log_softmax(cosine / temperature, columns))",
    "jnp.exp(_log_softmax(cosine * temperature, columns))",
  ),
  (
    "normaliser",
    "inner: the sum instead of the mean",
    "return jnp.sum((maps[0] - maps[1]) ** 2, axis=-1) / count.astype(student.dtype)",
    "return jnp.sum((maps[0] - maps[1]) ** 2, axis=-1)",
  ),
  (
    "normaliser",
    "inner: over all nodes instead of the valid ones",
    "count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)",
    "count = jnp.asarray(mask.shape[-1])",
  ),
]

_RELATION_GRAPH = [
  (
    "sign",
    "tau rises",
    "(self.contextual_end / self.contextual_start) ** elapsed",
    "(self.contextual_start / self.contextual_end) ** elapsed",
  ),
  (
    "clip",
    "elapsed beyond 1 goes on",
    'elapsed = check_progress("elapsed", elapsed)\n    return self',
    "elapsed = jax.lax.stop_gradient(jnp.asarray(elapsed, jnp.float32))\n    return self",
  ),
  (
    "mask",
    "features outside the mask reach the maths",
    "hidden = [jnp.where(mask[..., None], x, 0) for x in (student, teacher, projected)]",
    "hidden = [student, teacher, projected]",
  ),
  (
    "mask",
    "the mean is over all nodes",
    "means = {name: masked_mean(term, mask) for name, term in terms.items()}",
    "means = {name: jnp.mean(term) for name, term in terms.items()}",
  ),
  (
    "normaliser",
    "the terms have no weights",
    "sum((weight * means[name] for name",
    "sum((means[name] for name",
  ),
  (
    "mask",
    "easy tokens are nodes",
    'eligible = mask & (stats["hard"] > 0)',
    'eligible = mask & (stats["hard"] >= 0)',
  ),
  (
    "mask",
    "tokens outside the mask are nodes",
    'eligible = mask & (stats["hard"] > 0)',
    'eligible = stats["hard"] > 0',
  ),
  (
    "normaliser",
    "nodes are not over their expected share",
    "masked_sum(jnp.mean(term, axis=0) / share[:, None], valid)",
    "masked_sum(jnp.mean(term, axis=0), valid)",
  ),
  (
    "reduction",
    "taps are summed",
    "masked_sum(jnp.mean(term, axis=0) / share[:, None], valid)",
    "masked_sum(jnp.sum(term, axis=0) / share[:, None], valid)",
  ),
  (
    "normaliser",
    "rows with more tokens than nodes weigh less",
    "share = jnp.minimum(hard_fraction, graph.nodes / jnp.maximum(row_tokens, 1))",
    "share = jnp.full_like(row_tokens, hard_fraction)",
  ),
  (
    "normaliser",
    "the trained terms have no weights",
    "sum((weight * sums[name] for name",
    "sum((sums[name] for name",
  ),
]

MUTATIONS = (
  *of_file("losses/token_graph.py", ["losses/token_graph_test.py"], _TOKEN_GRAPH),
  *of_file(
    ("losses/relation_graph.py", "methods/relation_graph.py"),
    ["losses/relation_graph_test.py"],
    _RELATION_GRAPH,
  ),
)

EQUIVALENTS = (
  Equivalent(
    "losses/token_graph.py",
    "drop the stop-gradient of the neighbours' distances",
    "what leaves are indices and bools: no gradient passes them",
  ),
)
