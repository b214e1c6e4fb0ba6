"""Distillation losses computed from hidden states, one chunk of tokens at a time.

The logits of two models take most of the memory of distillation. Here a loop makes the logits of
one chunk, computes the loss *and its gradient* from them, and drops them: no [tokens, vocab] array
exists for more than one chunk, and the backward pass only scales the gradients that the forward
pass made. The work is minimal: one matmul for the teacher's logits and three for the student, for
the tokens in the mask only. The loop runs ceil(tokens in the mask / chunk) times, a traced number,
which is possible because the loop itself is never differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from egad_jax.head.closed_form import has_closed_form, loss_and_gradient
from egad_jax.head.tpu import Kernels, chunk_by_kernels, kernel_chunk_size

TokenLoss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
Head = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]

# Largest number of elements in a chunk's logits when no chunk size is given: 640 MiB in float32.
_CHUNK_ELEMENTS = 5 * 2**25


def default_chunk_size(num_tokens: int, vocab_size: int) -> int:
  """Returns the tokens per chunk that keep one float32 copy of its logits within 640 MiB.

  Args:
    num_tokens: number of tokens that the head is called with, masked or not.
    vocab_size: columns of the logits on one device.

  Returns:
    A power of two, so that it divides most batches and no chunk needs padding; at least 128 (the
    side of a matrix unit) even where the logits then exceed the budget. `num_tokens` if that is
    smaller.

  >>> default_chunk_size(8192, 151_936)
  1024
  """
  affordable = max(128, _CHUNK_ELEMENTS // vocab_size)
  return min(num_tokens, 1 << affordable.bit_length() - 1)


def soft_capped(logits: jax.Array, soft_cap: float | None) -> jax.Array:
  """Returns `cap * tanh(logits / cap)` (Gemma 2, section 2); the logits if the cap is None."""
  return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def shared_vocabulary(student_rows: int, teacher_rows: int, vocab_size: int | None) -> int:
  """Returns the number of vocabulary entries that the loss sees.

  Args:
    student_rows: rows of the student's unembedding, padding included.
    teacher_rows: rows of the teacher's unembedding, padding included.
    vocab_size: number of real entries; None when neither unembedding has padding.

  Raises:
    ValueError: the numbers of rows differ and `vocab_size` is None, or it is out of range.
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


def tokens_by_chunk(mask: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
  """Lists the tokens in the mask, in order and without gaps, to be cut into chunks.

  Args:
    mask: bool [num_tokens], true at tokens to list.
    chunk: tokens per chunk.

  Returns:
    (indices int32 [ceil(num_tokens / chunk) * chunk], number of chunks int32). The tokens in the
    mask come first; after them come increasing indices >= num_tokens, which no token has. Chunks
    beyond the returned number hold only such indices, so every mask fits.

  >>> tokens, chunks = tokens_by_chunk(jnp.array([False, True, False, True, True]), chunk=2)
  >>> tokens.tolist(), int(chunks)
  ([1, 3, 4, 8, 9, 10], 2)
  """
  num_tokens = mask.size
  places = jnp.arange(-(-num_tokens // chunk) * chunk, dtype=jnp.int32)
  count = jnp.sum(mask, dtype=jnp.int32)
  inside_first = jnp.argsort(~mask, stable=True).astype(jnp.int32)
  inside_first = jnp.pad(inside_first, (0, places.size - num_tokens))
  return jnp.where(places < count, inside_first, num_tokens + places), (count + chunk - 1) // chunk


@jax.custom_jvp
def _first_derivative_only(args: Any) -> Any:
  return args


@_first_derivative_only.defjvp
def _refuse_second_derivative(primals, tangents):
  raise TypeError(
    "distillation_head has no second derivative: its gradient is made in the forward pass, and "
    "what that would need is not kept. Use egad_jax.head.dense_head, which has all derivatives."
  )


def distillation_head(
  token_loss: TokenLoss,
  *,
  chunk_size: int | None = None,
  vocab_size: int | None = None,
  student_soft_cap: float | None = None,
  teacher_soft_cap: float | None = None,
  vocab_sharding: NamedSharding | None = None,
  kernels: Kernels | None = None,
) -> Head:
  """Makes the head that turns hidden states into a summed loss without holding all logits.

  Args:
    token_loss: `(student_logits f32[n, vocab], teacher_logits f32[n, vocab], labels [n],
      extras {name: [n]}, context pytree) -> (loss f32[n], stats {name: f32[n]})`; a token's loss
      must not depend on other tokens.
    chunk_size: tokens whose logits exist at once; None for `default_chunk_size`. Memory grows with
      it; the result does not depend on it.
    vocab_size: number of real vocabulary entries; further rows of either unembedding are padding,
      are never multiplied, and get a zero gradient. None when there is no padding.
    student_soft_cap: cap of the student's logits, `cap * tanh(logits / cap)`; None for no cap.
    teacher_soft_cap: cap of the teacher's logits; None for no cap.
    vocab_sharding: sharding of an array [vocab], for `vocab_parallel_head`; None for a vocabulary
      that is not split.
    kernels: the kernels of the TPU that the head will run on, from `tpu.kernels_of`. When the
      loss is differentiated, they compute an entropy-guided forward KL and its gradient if both
      hidden states are bfloat16, their widths are multiples of 128 and the vocabulary is not split.
      Plain XLA operations do everything else; None uses no kernels.

  Returns:
    `head(student_hidden [batch, seq, Ds], student_unembedding [Vs, Ds],
    teacher_hidden [batch, seq, Dt], teacher_unembedding [Vt, Dt], labels int [batch, seq],
    mask bool [batch, seq], extras={}, context=()) -> (loss, stats)`, where `loss` is the SUM of
    `token_loss` over the tokens in `mask` (float32 scalar) and stats are `{name: [batch, seq]}`,
    zero outside the mask. Any leading axes may stand for [batch, seq]. Gradient flows to
    `student_hidden` and `student_unembedding` alone. Matmuls run in the dtype of the hidden
    states (pass float32 master unembeddings: their gradient is then accumulated and returned in
    float32); logits, loss and gradient of the logits are float32. Tokens outside the mask are never
    read: they cost no work and change nothing, even if they are NaN. Without differentiation no
    gradient work is done; a second derivative raises a TypeError. A bias of the logits can be
    passed as one more column of an unembedding, for a hidden feature of 1.
  """

  def summed(loss, stats, mask):
    stats = {k: jnp.where(mask, jax.lax.stop_gradient(v), 0) for k, v in stats.items()}
    return jnp.sum(jnp.where(mask, loss, 0)), stats

  def chunk_loss(student_logits, teacher_logits, labels, mask, extras, context):
    student_logits = soft_capped(student_logits, student_soft_cap)
    loss, stats = token_loss(student_logits, teacher_logits, labels, extras, context)
    return summed(loss, stats, mask)

  def chunk_loss_and_gradient(student_logits, teacher_logits, labels, mask, extras, context):
    """(summed loss, stats, gradient with respect to the student's logits)."""
    if has_closed_form(token_loss):
      capped, uncap = jax.vjp(lambda z: soft_capped(z, student_soft_cap), student_logits)
      rest = (teacher_logits, labels, mask, context)
      loss, stats, gradient = loss_and_gradient(token_loss, capped, *rest)
      return *summed(loss, stats, mask), *uncap(gradient)
    loss, pullback, stats = jax.vjp(
      lambda z: chunk_loss(z, teacher_logits, labels, mask, extras, context),
      student_logits,
      has_aux=True,
    )
    return loss, stats, *pullback(jnp.ones_like(loss))

  def split(x: jax.Array, axis: int) -> jax.Array:
    """Constrains `axis`, the vocabulary, of an array to `vocab_sharding`."""
    if vocab_sharding is None:
      return x
    spec = PartitionSpec(*(None,) * axis, *vocab_sharding.spec)
    return jax.lax.with_sharding_constraint(x, NamedSharding(vocab_sharding.mesh, spec))

  def kernels_for(arrays, num_tokens: int, vocab: int):
    """(the kernels' step, tokens per chunk); (None, any) where the kernels cannot be used.

    They cannot be used with a split vocabulary: the compiler splits it and cannot split kernels.
    """
    if kernels is None or vocab_sharding is not None or not has_closed_form(token_loss):
      return None, 0
    chunk = kernel_chunk_size(kernels, chunk_size, num_tokens, vocab)
    caps = {"student_soft_cap": student_soft_cap, "teacher_soft_cap": teacher_soft_cap}
    return chunk_by_kernels(token_loss, kernels, arrays, chunk, vocab=vocab, **caps), chunk

  def loop_over_chunks(args, with_gradient: bool):
    student_hidden, student_unembedding, teacher_hidden, teacher_unembedding = args[:4]
    labels, mask, extras, context = args[4:]
    check_shapes(*args[:-1])
    rows = (student_unembedding.shape[0], teacher_unembedding.shape[0])
    vocab = shared_vocabulary(*rows, vocab_size)
    num_tokens = mask.size
    by_kernels = None
    if with_gradient:
      by_kernels, chunk = kernels_for(args[:4], num_tokens, vocab)
    if by_kernels is None:
      parts = vocab_sharding.num_devices if vocab_sharding else 1
      chunk = min(chunk_size or default_chunk_size(num_tokens, -(-vocab // parts)), num_tokens)
    tokens, num_chunks = tokens_by_chunk(mask.reshape(-1), chunk)

    def flat(x):
      return x.reshape(num_tokens, *x.shape[mask.ndim :])

    arrays = jax.tree.map(flat, (student_hidden, teacher_hidden, labels, extras))
    student_weight = split(student_unembedding[:vocab].astype(student_hidden.dtype), 0)
    teacher_weight = split(teacher_unembedding[:vocab].astype(teacher_hidden.dtype), 0)
    accumulator = jnp.promote_types(student_hidden.dtype, jnp.float32)
    unembedding_gradient = split(jnp.zeros(student_weight.shape, accumulator), 0)

    def chunk_terms(indices, unembedding_gradient):
      """(loss, stats, hidden gradient, unembedding gradient with this chunk's added)."""
      row_mask = indices < num_tokens
      # The last chunk is filled up with a token of the mask, so that `token_loss` only ever sees
      # values of real tokens.
      filled = jnp.where(row_mask, indices, tokens[0])
      student_rows, teacher_rows, row_labels, row_extras = jax.tree.map(
        lambda x: x.at[filled].get(mode="promise_in_bounds"), arrays
      )
      if by_kernels is not None:
        loss, stats, hidden_gradient, unembedding_gradient = by_kernels.step(
          student_rows,
          student_weight,
          teacher_rows,
          teacher_weight,
          row_labels,
          row_mask,
          context,
          unembedding_gradient,
        )
        hidden_gradient = hidden_gradient.astype(student_rows.dtype)
        return *summed(loss, stats, row_mask), hidden_gradient, unembedding_gradient
      per_token = (row_labels, row_mask, row_extras, context)
      teacher_logits = split(logits_from(teacher_rows, teacher_weight), 1)
      teacher_logits = soft_capped(teacher_logits, teacher_soft_cap)
      student_logits = split(logits_from(student_rows, student_weight), 1)
      if not with_gradient:
        return *chunk_loss(student_logits, teacher_logits, *per_token), None, None
      loss, stats, logits_gradient = chunk_loss_and_gradient(
        student_logits, teacher_logits, *per_token
      )
      # The two gradient matmuls run in the compute dtype and accumulate in float32.
      logits_gradient = split(logits_gradient.astype(student_rows.dtype), 1)
      hidden_gradient = logits_gradient @ student_weight
      of_chunk = jnp.einsum(
        "nv,nd->vd", logits_gradient, student_rows, preferred_element_type=accumulator
      )
      return loss, stats, hidden_gradient, unembedding_gradient + split(of_chunk, 0)

    def body(i, carry):
      total, stats, hidden_gradient, unembedding_gradient = carry
      indices = jax.lax.dynamic_slice_in_dim(tokens, i * chunk, chunk)
      terms = chunk_terms(indices, unembedding_gradient)

      def put(whole, part):
        # Entries that fill up the last chunk have an index that no token has, and are dropped.
        at = whole.at[indices]
        return at.set(part, mode="drop", unique_indices=True, indices_are_sorted=True)

      stats, hidden_gradient = jax.tree.map(put, (stats, hidden_gradient), terms[1:3])
      return total + terms[0], stats, hidden_gradient, terms[3]

    # Tokens in the mask overwrite these zeros; all others keep them.
    _, stats, *_ = jax.eval_shape(chunk_terms, tokens[:chunk], unembedding_gradient)
    stats = {k: jnp.zeros(num_tokens, v.dtype) for k, v in stats.items()}
    start = (jnp.zeros((), accumulator), stats, None, None)
    if with_gradient:
      start = (*start[:2], jnp.zeros_like(arrays[0]), unembedding_gradient)
    loss, stats, hidden_gradient, unembedding_gradient = jax.lax.fori_loop(
      0, num_chunks, body, start
    )
    output = loss, {k: v.reshape(mask.shape) for k, v in stats.items()}
    if not with_gradient:
      return output, None
    padding = ((0, rows[0] - vocab), (0, 0))
    return output, (
      hidden_gradient.reshape(student_hidden.shape),
      jnp.pad(unembedding_gradient, padding),
    )

  @jax.custom_vjp
  def summed_loss(*args):
    return loop_over_chunks(args, with_gradient=False)[0]

  def forward(*args):
    args = _first_derivative_only(args)
    output, (hidden_gradient, unembedding_gradient) = loop_over_chunks(args, with_gradient=True)
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
