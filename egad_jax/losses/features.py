"""Mechanism 3 of EGAD, second half: distances between hidden states of student and teacher.

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
  """1 - cosine similarity, in [0, 2]; blind to the scale of both sides.

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
  return 1 - jnp.sum(_unit(student) * _unit(teacher), axis=-1)


def normalized_mse(student_features: ArrayLike, teacher_features: ArrayLike) -> jax.Array:
  """Mean squared difference after centring each side and scaling it to unit variance.

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
  difference = _unit(_centred(student)) - _unit(_centred(teacher))
  return jnp.mean((root_dim * difference) ** 2, axis=-1)


FEATURE_DISTANCES: Mapping[str, FeatureDistance] = {
  "cosine": cosine_distance,
  "normalized_mse": normalized_mse,
}


def init_projector(
  key: jax.Array, *, student_dim: int, teacher_dim: int, num_taps: int
) -> dict[str, jax.Array]:
  """Initial parameters of one linear map per tap, student width -> teacher width.

  Args:
    key: random key.
    student_dim: width of the student's hidden states.
    teacher_dim: width of the teacher's.
    num_taps: number of layer pairs.

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
    params: as from `init_projector`.
    student_features: float, shape [taps, ..., student_dim].
  """
  features = promote("student_features", student_features)
  return jnp.einsum("k...d,kde->k...e", features, params["kernel"])


def take_tokens(features: jax.Array, indices: jax.Array, valid: jax.Array) -> jax.Array:
  """Gathers tokens of every row; empty places become zeros, whatever they point at.

  Args:
    features: shape [taps, batch, seq, dim].
    indices: int, shape [batch, k], into seq.
    valid: bool, shape [batch, k].

  Returns:
    Shape [taps, batch, k, dim].
  """
  taken = jnp.take_along_axis(features, indices[None, :, :, None], axis=2)
  return jnp.where(valid[None, :, :, None], taken, 0)


def _unit(vector: jax.Array) -> jax.Array:
  squared = jnp.sum(vector**2, axis=-1, keepdims=True)
  # The slope of sqrt is infinite at 0: the norm of a zero vector counts as 1, in the gradient too.
  return vector / jnp.sqrt(jnp.where(squared > 0, squared, 1))


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
