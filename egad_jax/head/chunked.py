"""Distillation losses straight from hidden states, one chunk of tokens at a time.

The logits of two models are the memory wall of distillation. Here a scan holds the logits of one
chunk, takes the loss *and its gradient* while they are there, and keeps neither: no [tokens, vocab]
array exists for more than one chunk, and the backward pass only scales what the forward pass found.
The work is the least possible: one matmul for the teacher's logits, three for the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

TokenLoss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
Head = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]

# Elements of one chunk's logits when no chunk size is given: 512 MiB in float32.
_CHUNK_ELEMENTS = 2**27


def default_chunk_size(num_tokens: int, vocab_size: int) -> int:
  """Tokens per chunk such that one float32 copy of a chunk's logits is at most 512 MiB.

  Args:
    num_tokens: tokens that the head is called with.
    vocab_size: columns of the logits.

  Returns:
    A multiple of 128 (a matrix unit's side), at least 128, or `num_tokens` if that is smaller.

  >>> default_chunk_size(8192, 151_936)
  768
  """
  return min(num_tokens, max(128, _CHUNK_ELEMENTS // vocab_size // 128 * 128))


def soft_capped(logits: jax.Array, soft_cap: float | None) -> jax.Array:
  """`cap * tanh(logits / cap)`, or the logits themselves without a cap (Gemma 2, section 2)."""
  return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def shared_vocabulary(student_rows: int, teacher_rows: int, vocab_size: int | None) -> int:
  """The number of vocabulary entries that the loss sees.

  Args:
    student_rows: rows of the student's unembedding, padding included.
    teacher_rows: rows of the teacher's unembedding, padding included.
    vocab_size: real entries, or None when both unembeddings have only real ones.

  Raises:
    ValueError: the two differ and `vocab_size` does not say where to cut, or it is out of range.
  """
  if vocab_size is None:
    if student_rows != teacher_rows:
      raise ValueError(
        f"student_unembedding has {student_rows} rows and teacher_unembedding {teacher_rows}; "
        "pass vocab_size, the number of entries that both share."
      )
    return student_rows
  if not 1 <= vocab_size <= min(student_rows, teacher_rows):
    raise ValueError(
      f"vocab_size ({vocab_size}) must be between 1 and {min(student_rows, teacher_rows)}, "
      f"the rows that both unembeddings have ({student_rows} and {teacher_rows})."
    )
  return vocab_size


def check_shapes(
  student_hidden: jax.Array,
  student_unembedding: jax.Array,
  teacher_hidden: jax.Array,
  teacher_unembedding: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  extras: Mapping[str, jax.Array],
) -> None:
  """Raises a ValueError that names the first argument whose shape does not fit."""
  tokens = student_hidden.shape[:-1]
  for name, hidden, unembedding in (
    ("student", student_hidden, student_unembedding),
    ("teacher", teacher_hidden, teacher_unembedding),
  ):
    if unembedding.ndim != 2 or unembedding.shape[1] != hidden.shape[-1]:
      raise ValueError(
        f"{name}_unembedding must be [vocab, {hidden.shape[-1]}] to fit {name}_hidden "
        f"{hidden.shape}; got {unembedding.shape}."
      )
  per_token = {"labels": labels, "mask": mask} | {f"extras[{k!r}]": v for k, v in extras.items()}
  per_token["teacher_hidden[..., 0]"] = teacher_hidden[..., 0]
  for name, array in per_token.items():
    if array.shape != tokens:
      raise ValueError(f"{name} must have the shape of the tokens, {tokens}; got {array.shape}.")


def logits_from(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
  """`hidden @ unembedding.T` accumulated and returned in (at least) float32."""
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  return jnp.einsum("nd,vd->nv", hidden, unembedding, preferred_element_type=dtype)


def distillation_head(
  token_loss: TokenLoss,
  *,
  chunk_size: int | None = None,
  vocab_size: int | None = None,
  student_soft_cap: float | None = None,
  teacher_soft_cap: float | None = None,
) -> Head:
  """Makes the head that turns hidden states into a summed loss without ever holding all logits.

  Args:
    token_loss: `(student_logits f32[n, vocab], teacher_logits f32[n, vocab], labels [n],
      extras {name: [n]}, context pytree) -> (loss f32[n], stats {name: f32[n]})`, row by row.
    chunk_size: tokens whose logits exist at once; `default_chunk_size` if None. Memory grows with
      it, the result does not depend on it.
    vocab_size: real vocabulary entries; further rows of either unembedding are padding, are never
      multiplied, and get a zero gradient.
    student_soft_cap: logits become `cap * tanh(logits / cap)`; None for no cap.
    teacher_soft_cap: the same for the teacher.

  Returns:
    `head(student_hidden [batch, seq, Ds], student_unembedding [Vs, Ds],
    teacher_hidden [batch, seq, Dt], teacher_unembedding [Vt, Dt], labels int [batch, seq],
    mask bool [batch, seq], extras={}, context=()) -> (loss, stats)`, where `loss` is the SUM of
    `token_loss` over the tokens in `mask` (float32 scalar) and stats are `{name: [batch, seq]}`,
    zero outside the mask. Any leading axes instead of [batch, seq]. Gradient flows to
    `student_hidden` and `student_unembedding` alone. Matmuls run in the dtype of the hidden
    states (pass float32 master unembeddings: their gradient is then accumulated and returned in
    float32); logits, loss and gradient of the logits are float32. Hidden states outside the mask
    change nothing, NaN included. Without differentiation no gradient work is done.
  """

  def per_chunk_loss(student_logits, teacher_logits, labels, mask, extras, context):
    loss, stats = token_loss(
      soft_capped(student_logits, student_soft_cap), teacher_logits, labels, extras, context
    )
    stats = {k: jnp.where(mask, jax.lax.stop_gradient(v), 0) for k, v in stats.items()}
    return jnp.sum(jnp.where(mask, loss, 0)), stats

  def scan_chunks(args, with_gradient: bool):
    student_hidden, student_unembedding, teacher_hidden, teacher_unembedding = args[:4]
    labels, mask, extras, context = args[4:]
    check_shapes(*args[:-1])
    rows = (student_unembedding.shape[0], teacher_unembedding.shape[0])
    vocab = shared_vocabulary(*rows, vocab_size)
    leading, num_tokens = mask.shape, mask.size
    chunk = min(chunk_size or default_chunk_size(num_tokens, vocab), num_tokens)
    num_chunks = -(-num_tokens // chunk)

    def chunked(x):
      flat = x.reshape(num_tokens, *x.shape[mask.ndim :])
      padding = [(0, num_chunks * chunk - num_tokens)] + [(0, 0)] * (flat.ndim - 1)
      return jnp.pad(flat, padding).reshape(num_chunks, chunk, *flat.shape[1:])

    # 0 * NaN is NaN: what the mask excludes must be gone before the matmuls of the gradient.
    def kept(x):
      return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, 0)

    student_weight = student_unembedding[:vocab].astype(student_hidden.dtype)
    teacher_weight = teacher_unembedding[:vocab].astype(teacher_hidden.dtype)
    accumulator = jnp.promote_types(student_hidden.dtype, jnp.float32)

    def body(carry, xs):
      total, unembedding_gradient = carry
      student_rows, teacher_rows, row_labels, row_mask, row_extras = xs
      per_token = (row_labels, row_mask, row_extras, context)
      teacher_logits = soft_capped(logits_from(teacher_rows, teacher_weight), teacher_soft_cap)
      student_logits = logits_from(student_rows, student_weight)
      if not with_gradient:
        loss, stats = per_chunk_loss(student_logits, teacher_logits, *per_token)
        return (total + loss, unembedding_gradient), (None, stats)
      loss, pullback, stats = jax.vjp(
        lambda z: per_chunk_loss(z, teacher_logits, *per_token),
        student_logits,
        has_aux=True,
      )
      (logits_gradient,) = pullback(jnp.ones_like(loss))
      # The two gradient matmuls in the compute dtype, their sums in float32.
      logits_gradient = logits_gradient.astype(student_rows.dtype)
      hidden_gradient = logits_gradient @ student_weight
      unembedding_gradient += jnp.einsum(
        "nv,nd->vd", logits_gradient, student_rows, preferred_element_type=accumulator
      )
      return (total + loss, unembedding_gradient), (hidden_gradient, stats)

    gradient_shape = student_weight.shape if with_gradient else ()
    start = (jnp.zeros((), accumulator), jnp.zeros(gradient_shape, accumulator))
    xs = jax.tree.map(
      chunked,
      (
        *(kept(student_hidden), kept(teacher_hidden), kept(labels)),
        *(mask, {k: kept(v) for k, v in extras.items()}),
      ),
    )
    (loss, unembedding_gradient), (hidden_gradient, stats) = jax.lax.scan(body, start, xs)

    def unchunked(x):
      return x.reshape(-1, *x.shape[2:])[:num_tokens].reshape(*leading, *x.shape[2:])

    stats = jax.tree.map(unchunked, stats)
    if not with_gradient:
      return (loss, stats), None
    padding = ((0, rows[0] - vocab), (0, 0))
    gradients = (unchunked(hidden_gradient), jnp.pad(unembedding_gradient, padding))
    return (loss, stats), gradients

  @jax.custom_vjp
  def summed_loss(*args):
    return scan_chunks(args, with_gradient=False)[0]

  def forward(*args):
    output, (hidden_gradient, unembedding_gradient) = scan_chunks(args, with_gradient=True)
    # An empty array carries the dtype that the cotangent of the unembedding must have.
    return output, (hidden_gradient, unembedding_gradient, jnp.zeros((0,), args[1].dtype))

  def backward(residuals, cotangents):
    hidden_gradient, unembedding_gradient, like = residuals
    scale = cotangents[0]
    return (
      (scale * hidden_gradient).astype(hidden_gradient.dtype),
      (scale * unembedding_gradient).astype(like.dtype),
      *(None,) * 6,
    )

  summed_loss.defvjp(forward, backward)

  def head(
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    teacher_hidden: jax.Array,
    teacher_unembedding: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    extras: Mapping[str, jax.Array] | None = None,
    context: Any = (),
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    teacher = jax.lax.stop_gradient((teacher_hidden, teacher_unembedding))
    rest = (labels, mask.astype(bool), dict(extras or {}), context)
    return summed_loss(student_hidden, student_unembedding, *teacher, *rest)

  return head
