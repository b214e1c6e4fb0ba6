"""Feature distances between hidden states of student and teacher, for mechanism 3 of EGAD.

The abstract of EGAD (arXiv 2605.01732) says that hard tokens are also distilled from features and
gives no formula; the distances and the linear projector are our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import promote

FeatureDistance = Callable[[ArrayLike, ArrayLike], jax.Array]


def cosine_distance(student_features: ArrayLike, teacher_features: ArrayLike) -> jax.Array:
  """Returns 1 - cosine similarity, in [0, 2], which ignores the scale of both sides.

  Args:
    student_features: projected hidden states, float, shape [..., dim].
    teacher_features: hidden states, float, shape [..., dim]. Detached.

  Returns:
    Distances, at least float32, shape [...]; 1 where one side is the zero vector, with a finite
    gradient.

  Raises:
    TypeError: not floating point.
    ValueError: shapes differ.

  >>> student, teacher = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
  >>> cosine_distance(student, teacher).tolist()
  [0.0, 1.0]
  """
  student, teacher = _check_features(student_features, teacher_features)
  return 1 - jnp.sum(unit(student) * unit(teacher), axis=-1)


def normalized_mse(student_features: ArrayLike, teacher_features: ArrayLike) -> jax.Array:
  """Returns the mean squared difference of both sides after centring and scaling to variance 1.

  Args:
    student_features: projected hidden states, float, shape [..., dim].
    teacher_features: hidden states, float, shape [..., dim]. Detached.

  Returns:
    Distances in [0, 4], at least float32, shape [...]; invariant to any affine rescaling of either
    side by a positive factor.

  Raises:
    TypeError: not floating point.
    ValueError: shapes differ.

  >>> round(float(normalized_mse(jnp.array([1.0, 2.0, 3.0]), jnp.array([30.0, 20.0, 10.0]))), 4)
  4.0
  """
  student, teacher = _check_features(student_features, teacher_features)
  root_dim = student.shape[-1] ** 0.5
  difference = unit(_centred(student)) - unit(_centred(teacher))
  return jnp.mean((root_dim * difference) ** 2, axis=-1)


FEATURE_DISTANCES: Mapping[str, FeatureDistance] = {
  "cosine": cosine_distance,
  "normalized_mse": normalized_mse,
}
"""The distances of single tokens, by name; they need student features in the teacher's space."""


def pair_distances(
  student_features: ArrayLike, teacher_features: ArrayLike, weight: ArrayLike
) -> jax.Array:
  """Compares the two models' distances from each token to the others of its row.

    F_i = sum_{j != i} w_j (d_S(i, j) - d_T(i, j))^2 / max(1, sum_{j != i} w_j),

  with d the cosine distance inside each model's own space. Rotating or rescaling either space
  changes nothing, so the widths may differ and no projector is needed. The loss follows the
  span-distance loss of MTA (arXiv 2605.01374), which compares spans and weights pairs by
  importance; ours compares tokens.

  Args:
    student_features: hidden states, float, shape [..., tokens, Ds].
    teacher_features: hidden states, float, shape [..., tokens, Dt]. Detached.
    weight: w >= 0, the weight of each token as the other one of a pair, shape [..., tokens];
      leading axes may be 1. Detached. Features must be finite even where the weight is 0.

  Returns:
    F in [0, 4], at least float32, shape [..., tokens]; 0 for a token without others. If the others'
    weights sum to less than 1, F shrinks with the sum, so that it is continuous as weights go to 0.

  Raises:
    TypeError: features not floating point.
    ValueError: leading shapes differ.

  >>> student = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
  >>> teacher = jnp.array([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
  >>> pair_distances(student, teacher, jnp.ones(3)).tolist()
  [0.5, 1.0, 0.5]
  """
  student = promote("student_features", student_features)
  teacher = jax.lax.stop_gradient(promote("teacher_features", teacher_features))
  if student.ndim < 2 or student.shape[:-1] != teacher.shape[:-1]:
    raise ValueError(
      "student_features and teacher_features must have shapes [..., tokens, dim] that differ in dim"
      f" alone, got {student.shape} and {teacher.shape}."
    )
  weight = jax.lax.stop_gradient(promote("weight", weight))
  difference = _similarities(student) - _similarities(teacher)
  pairs = (*weight.shape, weight.shape[-1])
  row, column = (jax.lax.broadcasted_iota(jnp.int32, pairs, weight.ndim - k) for k in (1, 0))
  others = jnp.where(row == column, 0, weight[..., None, :])
  total = jnp.sum(others * difference**2, axis=-1)
  return total / jnp.maximum(jnp.sum(others, axis=-1), 1)


def init_projector(
  key: jax.Array, *, student_dim: int, teacher_dim: int, num_taps: int
) -> dict[str, jax.Array]:
  """Returns initial parameters of one linear map per tap, student width -> teacher width.

  Args:
    key: random key; not used when the widths are equal.
    student_dim: width of the student's hidden states.
    teacher_dim: width of the teacher's hidden states.
    num_taps: number of pairs of tapped layers.

  Returns:
    {"kernel": float32 [num_taps, student_dim, teacher_dim]}: the identity when the widths are
    equal (a student cut from its teacher then starts where the teacher is), else LeCun normal.
  """
  if student_dim == teacher_dim:
    eye = jnp.eye(student_dim, dtype=jnp.float32)
    return {"kernel": jnp.tile(eye[None], (num_taps, 1, 1))}
  initializer = jax.nn.initializers.lecun_normal(batch_axis=0)
  return {"kernel": initializer(key, (num_taps, student_dim, teacher_dim), jnp.float32)}


def project(params: Mapping[str, jax.Array], student_features: ArrayLike) -> jax.Array:
  """Maps student features [taps, ..., student_dim] to [taps, ..., teacher_dim], float32.

  Args:
    params: parameters from `init_projector`.
    student_features: float, shape [taps, ..., student_dim].
  """
  features = promote("student_features", student_features)
  return jnp.einsum("k...d,kde->k...e", features, params["kernel"])


def take_tokens(features: jax.Array, indices: jax.Array, valid: jax.Array) -> jax.Array:
  """Gathers tokens of every row; entries that are not valid become zeros.

  Args:
    features: shape [taps, batch, seq, dim].
    indices: int, shape [batch, k], the tokens to take, as indices into seq.
    valid: bool, shape [batch, k], false at entries to fill with zeros.

  Returns:
    Shape [taps, batch, k, dim].
  """
  taken = jnp.take_along_axis(features, indices[None, :, :, None], axis=2)
  return jnp.where(valid[None, :, :, None], taken, 0)


def _similarities(features: jax.Array) -> jax.Array:
  """Returns the cosine similarity of each pair of tokens, [..., tokens, tokens]."""
  vectors = unit(features)
  # Differences of similarities close to 1 would be lost to the rounding of fast matmuls.
  return jnp.einsum("...id,...jd->...ij", vectors, vectors, precision="highest")


def unit(features: jax.Array) -> jax.Array:
  """Scales each vector of features [..., dim] to norm 1; a zero vector stays zero.

  >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
  [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
  """
  squared = jnp.sum(features**2, axis=-1, keepdims=True)
  # The slope of sqrt is infinite at 0: the norm of a zero vector counts as 1, in the gradient too.
  return features / jnp.sqrt(jnp.where(squared > 0, squared, 1))


def _centred(vector: jax.Array) -> jax.Array:
  return vector - jnp.mean(vector, axis=-1, keepdims=True)


def _check_features(
  student_features: ArrayLike, teacher_features: ArrayLike
) -> tuple[jax.Array, jax.Array]:
  student = promote("student_features", student_features)
  teacher = promote("teacher_features", teacher_features)
  if student.shape != teacher.shape:
    raise ValueError(
      "student_features (already projected) and teacher_features must have the same shape, got"
      f" {student.shape} and {teacher.shape}."
    )
  return student, jax.lax.stop_gradient(teacher)
