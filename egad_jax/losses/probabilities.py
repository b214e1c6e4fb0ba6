"""Log-probabilities that stay finite at -inf logits, and the argument checks of the losses.

In shapes, `[...]` are any leading axes (usually `[batch, seq]`); `vocab` is always the last axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

LOG_ZERO = -100.0
"""The log-probability of a vocabulary entry whose logit is -inf, in nats.

exp(-100) adds nothing to a sum, yet a divergence stays finite where only one of the two models
rules an entry out: a probability of 0 then costs 100 nats instead of infinity.
"""


def promote(name: str, array: ArrayLike) -> jax.Array:
  """Returns `array` in at least float32 (float64 stays); TypeError unless it is floating point."""
  array = jnp.asarray(array)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise TypeError(
      f"{name} must be floating point, got {array.dtype}; convert it with .astype(jnp.float32)."
    )
  return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def check_logits(name: str, logits: ArrayLike) -> jax.Array:
  """Returns the promoted logits; ValueError unless they have a vocabulary axis."""
  logits = promote(name, logits)
  if logits.ndim < 1 or logits.shape[-1] < 1:
    raise ValueError(f"{name} must have shape [..., vocab] with vocab >= 1, got {logits.shape}.")
  return logits


def check_pair(student_logits: ArrayLike, teacher_logits: ArrayLike) -> tuple[jax.Array, jax.Array]:
  """Returns both logits promoted, the teacher's detached; ValueError unless shapes are equal."""
  student_logits = check_logits("student_logits", student_logits)
  teacher_logits = check_logits("teacher_logits", teacher_logits)
  if student_logits.shape != teacher_logits.shape:
    remedy = ""
    if student_logits.shape[:-1] == teacher_logits.shape[:-1]:
      remedy = (
        "; cut both at the tokenizer's size when only the padding of the vocabulary differs, and"
        " use a cross-tokenizer projection, cross_tokenizer_loss, when the tokenizers differ"
      )
    raise ValueError(
      "student_logits and teacher_logits must have the same shape [..., vocab], got"
      f" {student_logits.shape} and {teacher_logits.shape}{remedy}."
    )
  return student_logits, jax.lax.stop_gradient(teacher_logits)


def check_labels(labels: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
  """Returns integer labels of the given leading shape, or raises TypeError or ValueError."""
  labels = jnp.asarray(labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise TypeError(f"labels must be integers, got {labels.dtype}.")
  if labels.shape != shape:
    raise ValueError(f"labels must have the logits' leading shape {shape}, got {labels.shape}.")
  return labels


def check_mask(mask: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
  """Returns the mask as bool; ValueError unless it has exactly `shape`, TypeError for floats."""
  mask = jnp.asarray(mask)
  if mask.shape != shape:
    raise ValueError(f"mask must have shape {shape}, one entry per token, got {mask.shape}.")
  if jnp.issubdtype(mask.dtype, jnp.inexact):
    raise TypeError(
      f"mask must be bool (or 0 and 1 as integers), got {mask.dtype}; a mask is no weight."
    )
  return mask.astype(bool)


def check_type(name: str, value: object, kind: type) -> None:
  """Raises TypeError unless `value` is of `kind`."""
  if not isinstance(value, kind):
    raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}.")


def check_progress(name: str, value: ArrayLike) -> jax.Array:
  """Returns a share of the training or of a curriculum, a detached float32 scalar in [0, 1].

  A Python or NumPy number out of range raises ValueError; a JAX array is clipped instead, because
  its value may not be known yet.
  """
  if jnp.ndim(value):
    raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}.")
  if isinstance(value, int | float | np.generic) and not 0 <= value <= 1:
    raise ValueError(f"{name} must be in [0, 1], got {value}; a step is divided by their number.")
  return jnp.clip(jax.lax.stop_gradient(jnp.asarray(value, jnp.float32)), 0, 1)


def hide_columns(logits: jax.Array, where: ArrayLike | None) -> jax.Array:
  """Returns logits with -inf in the vocabulary entries that `where` [vocab] does not mark."""
  if where is None:
    return logits
  where = jnp.asarray(where).astype(bool)
  if where.shape != logits.shape[-1:]:
    raise ValueError(
      f"where must have shape {logits.shape[-1:]}, one entry per vocabulary id, got {where.shape}."
    )
  return jnp.where(jnp.expand_dims(where, tuple(range(logits.ndim - 1))), logits, -jnp.inf)


def log_probabilities(
  logits: jax.Array, *, temperature: ArrayLike = 1.0, where: ArrayLike | None = None
) -> jax.Array:
  """log softmax(logits / temperature), with `LOG_ZERO` where the logit is -inf or hidden.

  Args:
    logits: float, shape [..., vocab]. Entries may be -inf, but not a whole row.
    temperature: T > 0; one number, or one per token, shape [...]. Detached.
    where: bool, shape [vocab], true at real vocabulary entries; values of the others are ignored.
      None counts all entries.

  Returns:
    Log-probabilities in nats, at least float32, shape [..., vocab]; the gradient with respect to
    entries that are -inf or hidden is zero.

  Raises:
    TypeError: `logits` are not floating point.
    ValueError: `temperature` or `where` has the wrong shape, or a temperature that is a Python or
      NumPy value is not positive (JAX arrays are not checked).
  """
  logits = hide_columns(check_logits("logits", logits), where)
  is_known = isinstance(temperature, int | float | np.ndarray | np.generic)
  if is_known and not np.all(np.asarray(temperature) > 0):
    raise ValueError(f"temperature must be positive, got {temperature}.")
  if isinstance(temperature, int | float):
    scaled = logits if temperature == 1 else logits / temperature
  else:
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature)).astype(logits.dtype)
    if temperature.ndim and temperature.shape != logits.shape[:-1]:
      raise ValueError(
        "temperature must be one number or one per token, shape"
        f" {logits.shape[:-1]}, got {temperature.shape}."
      )
    scaled = logits / (temperature[..., None] if temperature.ndim else temperature)
  log_p = jax.nn.log_softmax(scaled, axis=-1)
  # 0 * -inf and -inf - -inf are NaN, in values and gradients. With a finite value the divergences
  # need no special cases, and `where` cuts the gradient of these entries.
  return jnp.where(scaled == -jnp.inf, LOG_ZERO, log_p)


def label_value(values: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns values[..., label], shape [...]; 0 where the label is not a vocabulary id.

  It compares instead of gathering: the transpose needs no scatter, and the code runs unchanged when
  the vocabulary axis is sharded.
  """
  return jnp.sum(jnp.where(is_label(values, labels), values, 0), axis=-1)


def is_label(values: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns bool [..., vocab], true at each token's label."""
  ids = jax.lax.broadcasted_iota(labels.dtype, values.shape, values.ndim - 1)
  return ids == labels[..., None]
