"""Relations between the tokens of a graph: neighbours, edges, similarity maps, contrast.

The module has the three terms of TRG, one value per node (arXiv 2306.12442, of which only the
abstract and third-party notes were available). The notes give the Gaussian edges on k nearest
neighbours, the KL between their softmaxes, InfoNCE between student and teacher nodes, and the MSE
of softmax(F F^T / sqrt(D)). Our choices are the unit vectors, the neighbours and the sigma that
both models use, and a temperature instead of sqrt(D).

In shapes, `nodes` is the last axis but one of features and the last of masks; every leading index
is a graph of its own. All functions expect features that are finite (zero outside the mask).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.features import unit

SMALLEST_SIGMA = 1e-5
"""Lower bound of the teacher's median distance, above the rounding of float32 distances."""
DIRECTIONS = ("student_to_teacher", "teacher_to_student")

# The logit of excluded entries. It is finite, so that a softmax without a valid entry is uniform
# instead of NaN, and, unlike LOG_ZERO, below any similarity divided by any temperature.
_EXCLUDED = -1e30


def squared_distances(vectors: jax.Array) -> jax.Array:
  """Returns squared Euclidean distances between all pairs of vectors [..., nodes, dim].

  Returns:
    Shape [..., nodes, nodes], >= 0; the gradient of a pair at distance 0 is 0.

  >>> squared_distances(jnp.array([[1.0, 0.0], [0.0, 1.0]])).tolist()
  [[0.0, 2.0], [2.0, 0.0]]
  """
  norms = jnp.sum(vectors**2, axis=-1)
  return jnp.maximum(norms[..., :, None] + norms[..., None, :] - 2 * _products(vectors, vectors), 0)


def nearest_neighbours(
  distances: jax.Array, mask: jax.Array, *, neighbours: int
) -> tuple[jax.Array, jax.Array]:
  """Picks the nearest other valid nodes of every node.

  Args:
    distances: distances between nodes, float, shape [..., nodes, nodes].
    mask: bool, shape [..., nodes], true at valid nodes.
    neighbours: largest number of neighbours to pick per node, >= 1.

  Returns:
    indices int32 [..., nodes, k], nearest first (the lower index at ties), and valid bool, the same
    shape, false where there is no further valid node; k = min(neighbours, nodes - 1), but at least
    1.

  >>> distances = jnp.array([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0], [4.0, 1.0, 0.0]])
  >>> indices, valid = nearest_neighbours(distances, jnp.array([True, True, True]), neighbours=1)
  >>> indices[:, 0].tolist(), valid[:, 0].tolist()
  ([1, 0, 1], [True, True, True])
  """
  rank = distances.ndim
  row = jax.lax.broadcasted_iota(jnp.int32, distances.shape, rank - 2)
  column = jax.lax.broadcasted_iota(jnp.int32, distances.shape, rank - 1)
  candidates = _pairs(mask) & (row != column)
  count = max(1, min(neighbours, distances.shape[-1] - 1))
  nearness = jnp.where(candidates, -jax.lax.stop_gradient(distances), -jnp.inf)
  best, indices = jax.lax.top_k(nearness, count)
  return indices, best > -jnp.inf


def median_distance(distances: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns the median valid distance [..., nodes, k] of each graph, at least `SMALLEST_SIGMA`.

  Returns:
    Shape [...], detached.

  >>> float(median_distance(jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[True, True, False]])))
  1.5
  """
  flat = jnp.where(valid, jax.lax.stop_gradient(distances), jnp.inf)
  ordered = jnp.sort(flat.reshape(*flat.shape[:-2], -1), axis=-1)
  count = jnp.sum(valid, axis=(-2, -1))[..., None]
  lower = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0) // 2, axis=-1)
  # count // 2 is in range even if all entries are valid; if none is, the value is not used.
  upper = jnp.take_along_axis(ordered, count // 2, axis=-1)
  median = jnp.where(count > 0, (lower + upper) / 2, 1)[..., 0]
  return jnp.maximum(median, SMALLEST_SIGMA)


def local_relation(
  student_features: jax.Array,
  teacher_features: jax.Array,
  mask: jax.Array,
  *,
  neighbours: int,
  sigma: float | None = None,
  direction: str = "student_to_teacher",
) -> jax.Array:
  """Returns the KL between student and teacher over the edges of each node, in nats.

    A_ij = exp(-||u_i - u_j||^2 / (2 sigma)),  j in kNN(i);  KL(softmax_j A^S_i || softmax_j A^T_i)

  with unit vectors u. The notes put an edge where i is in kNN(j); here A_i has the neighbours of i
  itself, so that each node has k of them, and the softmax is over these alone. Both models use the
  teacher's neighbours and sigma (our choice), so the target does not move with the student.

  Args:
    student_features: hidden states, float, shape [..., nodes, Ds].
    teacher_features: hidden states, float, shape [..., nodes, Dt]. Detached.
    mask: bool, shape [..., nodes], true at valid nodes.
    neighbours: k, the largest number of neighbours of a node; >= 1.
    sigma: width of the edges, > 0; None for the median of the graph's squared distances between
      teacher neighbours.
    direction: "student_to_teacher" (as in the notes), KL(student || teacher), or
      "teacher_to_student", KL(teacher || student).

  Returns:
    The KL of each node, shape [..., nodes]; 0 at a node without neighbours.

  >>> features = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
  >>> local_relation(features, features, jnp.array([True, True, True]), neighbours=2).tolist()
  [0.0, 0.0, 0.0]
  """
  student = squared_distances(unit(student_features))
  teacher = squared_distances(unit(jax.lax.stop_gradient(teacher_features)))
  indices, valid = nearest_neighbours(teacher, mask, neighbours=neighbours)
  student, teacher = (jnp.take_along_axis(d, indices, axis=-1) for d in (student, teacher))
  width: ArrayLike = (
    median_distance(teacher, valid)[..., None, None] if sigma is None else float(sigma)
  )
  log_q, log_p = (_log_softmax(jnp.exp(-d / (2 * width)), valid) for d in (student, teacher))
  if direction == "teacher_to_student":
    log_q, log_p = log_p, log_q
  gap = log_q - log_p
  # Softmaxes of edges in [0, 1] are close to each other, so sum q gap would cancel down to its
  # rounding error. The added terms, q (exp(-gap) - 1), sum to zero.
  return jnp.sum(jnp.exp(log_q) * (gap + jnp.expm1(-gap)), axis=-1)


def contextual_relation(
  projected_student_features: jax.Array,
  teacher_features: jax.Array,
  mask: jax.Array,
  *,
  temperature: ArrayLike,
) -> jax.Array:
  """Returns InfoNCE, the loss of finding each student node's teacher node among all, in nats.

    -log softmax_j(cos(s_i, t_j) / tau) at j = i

  Args:
    projected_student_features: student features in the teacher's space, float, shape
      [..., nodes, Dt].
    teacher_features: hidden states, float, same shape. Detached.
    mask: bool, shape [..., nodes], true at valid nodes.
    temperature: tau > 0, a scalar. Detached.

  Returns:
    The loss of each node, shape [..., nodes]; 0 for a lone node. It is not 0 for equal features,
    because other nodes have a similarity too.

  >>> features, mask = jnp.eye(2), jnp.array([True, True])
  >>> [round(float(x), 4) for x in contextual_relation(features, features, mask, temperature=0.5)]
  [0.1269, 0.1269]
  """
  student, teacher = unit(projected_student_features), unit(teacher_features)
  temperature = jax.lax.stop_gradient(jnp.asarray(temperature, student.dtype))
  similarity = _products(student, jax.lax.stop_gradient(teacher)) / temperature
  log_p = _log_softmax(similarity, _columns(mask, similarity.shape))
  return -jnp.diagonal(log_p, axis1=-2, axis2=-1)


def inner_relation(
  student_features: jax.Array,
  teacher_features: jax.Array,
  mask: jax.Array,
  *,
  temperature: float,
) -> jax.Array:
  """Returns the mean squared difference between each node's rows of both models' similarity maps.

    S = softmax_j(cos_ij / temperature),  mean over valid j of (S^S_ij - S^T_ij)^2

  The notes' logits F F^T / sqrt(D) have temperature sqrt(D) when F are unit vectors, which makes S
  flat, and 1 / sqrt(D) when F are layer-normed, which makes S one-hot from a few hundred dimensions
  on; either way the gradient vanishes. One temperature for both models (our choice) also means that
  equal cosines give equal maps whatever the widths.

  Args:
    student_features: hidden states, float, shape [..., nodes, Ds].
    teacher_features: hidden states, float, shape [..., nodes, Dt]. Detached.
    mask: bool, shape [..., nodes], true at valid nodes.
    temperature: temperature of both maps, > 0.

  Returns:
    The mean squared difference of each node, shape [..., nodes].

  >>> features, mask = jnp.eye(2), jnp.array([True, True])
  >>> inner_relation(features, features[::-1], mask, temperature=0.25).tolist()
  [0.0, 0.0]
  """
  student, teacher = unit(student_features), unit(jax.lax.stop_gradient(teacher_features))
  cosines = [_products(features, features) for features in (student, teacher)]
  columns = _columns(mask, cosines[0].shape)
  maps = [jnp.exp(_log_softmax(cosine / temperature, columns)) for cosine in cosines]
  count = jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
  return jnp.sum((maps[0] - maps[1]) ** 2, axis=-1) / count.astype(student.dtype)


def _products(left: jax.Array, right: jax.Array) -> jax.Array:
  # Matrix units that round to bfloat16 would change the order of near neighbours.
  return jnp.einsum("...id,...jd->...ij", left, right, precision=jax.lax.Precision.HIGHEST)


def _log_softmax(logits: jax.Array, allowed: jax.Array) -> jax.Array:
  """Returns log-softmax over the allowed entries; the others get probability 0 and no gradient."""
  return jax.nn.log_softmax(jnp.where(allowed, logits, _EXCLUDED), axis=-1)


def _pairs(mask: jax.Array) -> jax.Array:
  return mask[..., :, None] & mask[..., None, :]


def _columns(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jnp.broadcast_to(mask[..., None, :], shape)
