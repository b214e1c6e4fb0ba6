"""Distillation losses computed from hidden states, one chunk of tokens at a time.

The logits of two models take most of the memory of distillation. Here a loop makes the logits of
one chunk, computes the loss *and its gradient* from them, and drops them: no [tokens, vocab] array
exists for more than one chunk, and the backward pass only scales the gradients that the forward
pass made. The work is minimal: one matmul for the teacher's logits and three for the student, for
the tokens in the mask only. The loop runs ceil(tokens in the mask / chunk) times, a traced number,
which is possible because the loop itself is never differentiated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from egad_jax.head.chunks import default_chunk_size, tokens_by_chunk
from egad_jax.head.closed_form import has_closed_form, loss_and_gradient
from egad_jax.head.inputs import Head, Inputs, TokenLoss, check_inputs
from egad_jax.head.logits import logits_from, soft_capped
from egad_jax.head.teacher import (
  TEACHER_ENTROPY,
  ChunkTeacher,
  chunk_teacher,
  mapped,
  prepared,
)
from egad_jax.head.tpu import ChunkByKernels, Kernels, chunk_by_kernels, kernel_chunk_size
from egad_jax.teachers.outputs import Hidden, Outputs
from egad_jax.types import Stats


@jax.custom_jvp
def _first_derivative_only(args: Any) -> Any:
  return args


@_first_derivative_only.defjvp
def _refuse_second_derivative(primals, tangents):
  raise TypeError(
    "distillation_head has no second derivative: its gradient is made in the forward pass, and "
    "what that would need is not kept. Use egad_jax.head.dense_head, which has all derivatives."
  )


class _Rows(NamedTuple):
  """What the chunks read: arrays with an entry per token, and the teacher's unembedding."""

  student_hidden: jax.Array
  outputs: Outputs
  labels: jax.Array
  extras: Mapping[str, jax.Array]

  def each(self, function: Callable[[jax.Array], jax.Array]) -> _Rows:
    """Applies a function to the arrays that have one entry per token."""
    return _Rows(
      function(self.student_hidden),
      mapped(self.outputs, function),
      function(self.labels),
      jax.tree.map(function, self.extras),
    )


class _Sums(NamedTuple):
  """What the loop over chunks carries; the gradients are None in an evaluation.

  Attributes:
    loss: the sum over the chunks so far, a scalar.
    stats: {name: [tokens]}; zero at tokens of no chunk so far.
    hidden_gradient: gradient of the student's hidden states, [tokens, Ds], likewise.
    unembedding_gradient: gradient of the unembedding, the sum so far, [vocab, Ds].
  """

  loss: jax.Array
  stats: Stats
  hidden_gradient: jax.Array | None
  unembedding_gradient: jax.Array | None


def _summed(loss: jax.Array, stats: Stats, mask: jax.Array) -> tuple[jax.Array, Stats]:
  stats = {k: jnp.where(mask, jax.lax.stop_gradient(v), 0) for k, v in stats.items()}
  return jnp.sum(jnp.where(mask, loss, 0)), stats


@dataclasses.dataclass(frozen=True)
class _Chunks:
  """The loop of `distillation_head`, with its options; see there."""

  token_loss: TokenLoss
  chunk_size: int | None
  vocab_size: int | None
  student_soft_cap: float | None
  teacher_soft_cap: float | None
  vocab_sharding: NamedSharding | None
  kernels: Kernels | None

  def loop(
    self, inputs: Inputs, with_gradient: bool
  ) -> tuple[tuple[jax.Array, Stats], tuple[jax.Array, jax.Array] | None]:
    """Returns (loss, stats), and the gradients of the student's two arrays or None."""
    vocab = check_inputs(inputs, self.vocab_size)
    mask, student_hidden = inputs.mask, inputs.student_hidden
    num_tokens = mask.size
    by_kernels, chunk = self._kernels_for(inputs, vocab) if with_gradient else (None, 0)
    if by_kernels is None:
      chunk = self._chunk_of(num_tokens, vocab)
    tokens, num_chunks = tokens_by_chunk(mask.reshape(-1), chunk)
    outputs = prepared(inputs.outputs, vocab, self._split)
    rows = _Rows(student_hidden, outputs, inputs.labels, inputs.extras).each(
      lambda x: x.reshape(num_tokens, *x.shape[mask.ndim :])
    )
    student_weight = inputs.student_unembedding[:vocab].astype(student_hidden.dtype)
    student_weight = self._split(student_weight, 0)
    accumulator = jnp.promote_types(student_hidden.dtype, jnp.float32)
    no_gradient = self._split(jnp.zeros(student_weight.shape, accumulator), 0)

    def chunk_terms(indices: jax.Array, unembedding_gradient: jax.Array | None) -> _Sums:
      """The chunk's loss, stats and gradients, the unembedding's added to those before."""
      row_mask = indices < num_tokens
      # The last chunk is filled up with a token of the mask, so that `token_loss` only ever sees
      # values of real tokens.
      filled = jnp.where(row_mask, indices, tokens[0])
      of_chunk = rows.each(lambda x: x.at[filled].get(mode="promise_in_bounds"))
      rest = (of_chunk, row_mask, inputs.context, student_weight)
      if by_kernels is not None:
        return _by_kernels(by_kernels, *rest, unembedding_gradient)
      return self._terms(*rest, unembedding_gradient)

    def body(i, carry: _Sums) -> _Sums:
      indices = jax.lax.dynamic_slice_in_dim(tokens, i * chunk, chunk)
      terms = chunk_terms(indices, carry.unembedding_gradient)

      def put(whole, part):
        # Entries that fill up the last chunk have an index that no token has, and are dropped.
        at = whole.at[indices]
        return at.set(part, mode="drop", unique_indices=True, indices_are_sorted=True)

      stats, hidden_gradient = jax.tree.map(
        put, (carry.stats, carry.hidden_gradient), (terms.stats, terms.hidden_gradient)
      )
      return _Sums(carry.loss + terms.loss, stats, hidden_gradient, terms.unembedding_gradient)

    # Tokens in the mask overwrite these zeros; all others keep them.
    shapes = jax.eval_shape(chunk_terms, tokens[:chunk], no_gradient if with_gradient else None)
    stats = {k: jnp.zeros(num_tokens, v.dtype) for k, v in shapes.stats.items()}
    start = _Sums(jnp.zeros((), accumulator), stats, None, None)
    if with_gradient:
      start = start._replace(
        hidden_gradient=jnp.zeros_like(rows.student_hidden), unembedding_gradient=no_gradient
      )
    end = jax.lax.fori_loop(0, num_chunks, body, start)
    output = end.loss, {k: v.reshape(mask.shape) for k, v in end.stats.items()}
    if end.hidden_gradient is None or end.unembedding_gradient is None:
      return output, None
    padding = ((0, inputs.student_unembedding.shape[0] - vocab), (0, 0))
    return output, (
      end.hidden_gradient.reshape(student_hidden.shape),
      jnp.pad(end.unembedding_gradient, padding),
    )

  def _terms(
    self,
    rows: _Rows,
    mask: jax.Array,
    context: Any,
    student_weight: jax.Array,
    unembedding_gradient: jax.Array | None,
  ) -> _Sums:
    """Computes a chunk by plain XLA operations; without gradients if the last argument is None."""
    vocab = student_weight.shape[0]
    teacher = chunk_teacher(rows.outputs, vocab, self.teacher_soft_cap, self._split)
    student_logits = self._split(logits_from(rows.student_hidden, student_weight), 1)
    per_token = (rows.labels, mask, teacher.extras(rows.extras), context)
    if unembedding_gradient is None:
      loss, stats = self._loss(student_logits, teacher, *per_token)
      return _Sums(loss, stats, None, None)
    loss, stats, logits_gradient = self._loss_and_gradient(student_logits, teacher, *per_token)
    # The two gradient matmuls run in the compute dtype and accumulate in float32.
    logits_gradient = self._split(logits_gradient.astype(rows.student_hidden.dtype), 1)
    hidden_gradient = logits_gradient @ student_weight
    of_chunk = jnp.einsum(
      "nv,nd->vd",
      logits_gradient,
      rows.student_hidden,
      preferred_element_type=unembedding_gradient.dtype,
    )
    unembedding_gradient = unembedding_gradient + self._split(of_chunk, 0)
    return _Sums(loss, stats, hidden_gradient, unembedding_gradient)

  def _loss(self, student_logits, teacher: ChunkTeacher, labels, mask, extras, context):
    """Returns (summed loss, stats) of logits before the student's soft cap."""
    student_logits = soft_capped(student_logits, self.student_soft_cap)
    loss, stats = self.token_loss(student_logits, teacher.logits, labels, extras, context)
    return _summed(loss, {**stats, **teacher.stats}, mask)

  def _loss_and_gradient(
    self, student_logits, teacher: ChunkTeacher, labels, mask, extras, context
  ):
    """Returns (summed loss, stats, gradient with respect to the student's logits)."""
    if has_closed_form(self.token_loss):
      capped, uncap = jax.vjp(lambda z: soft_capped(z, self.student_soft_cap), student_logits)
      entropy = extras.get(TEACHER_ENTROPY)
      rest = (teacher.logits, labels, mask, context, entropy)
      loss, stats, gradient = loss_and_gradient(self.token_loss, capped, *rest)
      return *_summed(loss, {**stats, **teacher.stats}, mask), *uncap(gradient)
    loss, pullback, stats = jax.vjp(
      lambda z: self._loss(z, teacher, labels, mask, extras, context),
      student_logits,
      has_aux=True,
    )
    return loss, stats, *pullback(jnp.ones_like(loss))

  def _split(self, x: jax.Array, axis: int) -> jax.Array:
    """Constrains `axis`, the vocabulary, of an array to `vocab_sharding`."""
    if self.vocab_sharding is None:
      return x
    spec = PartitionSpec(*(None,) * axis, *self.vocab_sharding.spec)
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.vocab_sharding.mesh, spec))

  def _chunk_of(self, num_tokens: int, vocab: int) -> int:
    """Returns the tokens per chunk where no kernels are used."""
    parts = self.vocab_sharding.num_devices if self.vocab_sharding else 1
    return min(self.chunk_size or default_chunk_size(num_tokens, -(-vocab // parts)), num_tokens)

  def _kernels_for(self, inputs: Inputs, vocab: int) -> tuple[ChunkByKernels | None, int]:
    """Returns (the kernels' step, tokens per chunk); (None, any) where they cannot be used.

    They cannot be used with a split vocabulary, which the compiler splits as it cannot split
    kernels. They read the teacher's hidden states and take its entropy from them.
    """
    outputs = inputs.outputs
    if self.kernels is None or self.vocab_sharding is not None:
      return None, 0
    if not isinstance(outputs, Hidden) or TEACHER_ENTROPY in inputs.extras:
      return None, 0
    if not has_closed_form(self.token_loss):
      return None, 0
    chunk = kernel_chunk_size(self.kernels, self.chunk_size, inputs.mask.size, vocab)
    arrays = (*inputs[:2], outputs.hidden, outputs.unembedding)
    step = chunk_by_kernels(
      self.token_loss,
      self.kernels,
      arrays,
      chunk,
      vocab=vocab,
      student_soft_cap=self.student_soft_cap,
      teacher_soft_cap=self.teacher_soft_cap,
    )
    return step, chunk


def _by_kernels(
  kernels: ChunkByKernels,
  rows: _Rows,
  mask: jax.Array,
  context: Any,
  student_weight: jax.Array,
  unembedding_gradient: jax.Array | None,
) -> _Sums:
  """Computes a chunk, with its gradients, by the kernels of a TPU."""
  assert isinstance(rows.outputs, Hidden)
  assert unembedding_gradient is not None
  loss, stats, hidden_gradient, unembedding_gradient = kernels.step(
    rows.student_hidden,
    student_weight,
    rows.outputs.hidden,
    rows.outputs.unembedding,
    rows.labels,
    mask,
    context,
    unembedding_gradient,
  )
  hidden_gradient = hidden_gradient.astype(rows.student_hidden.dtype)
  return _Sums(*_summed(loss, stats, mask), hidden_gradient, unembedding_gradient)


def _differentiable(chunks: _Chunks) -> Callable[..., tuple[jax.Array, Stats]]:
  """Returns the head as a function of the fields of `Inputs`, with the gradient of the loop."""

  @jax.custom_vjp
  def summed_loss(*args):
    return chunks.loop(Inputs(*args), with_gradient=False)[0]

  def forward(*args):
    args = Inputs(*_first_derivative_only(args))
    output, gradients = chunks.loop(args, with_gradient=True)
    assert gradients is not None
    # An empty array carries the dtype that the cotangent of the unembedding must have.
    return output, (*gradients, jnp.zeros((0,), args.student_unembedding.dtype))

  def backward(residuals, cotangents):
    hidden_gradient, unembedding_gradient, like = residuals
    scale = cotangents[0]
    return (
      (scale * hidden_gradient).astype(hidden_gradient.dtype),
      (scale * unembedding_gradient).astype(like.dtype),
      *(None,) * (len(Inputs._fields) - 2),
    )

  summed_loss.defvjp(forward, backward)
  return summed_loss


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
      must not depend on other tokens. If `extras` holds "teacher_entropy", that is the teacher's
      entropy in nats, and the entropy of `teacher_logits` is not. The head adds it for a teacher
      that gives a `TopK` with its true entropy.
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

    `head.of_outputs` takes the teacher's outputs, `Hidden` or `TopK`, instead of the two teacher
    arrays. With a `TopK` the teacher of a chunk is the distribution of `losses.spread_tail`, whose
    logits may be -inf; if the `TopK` has no entropy, the stats get its bounds,
    teacher_entropy_low and teacher_entropy_high.
  """
  chunks = _Chunks(
    token_loss,
    chunk_size,
    vocab_size,
    student_soft_cap,
    teacher_soft_cap,
    vocab_sharding,
    kernels,
  )
  summed_loss = _differentiable(chunks)

  def of_outputs(
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    outputs: Outputs,
    labels: jax.Array,
    mask: jax.Array,
    extras: Mapping[str, jax.Array] | None = None,
    context: Any = (),
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    teacher = mapped(outputs, lambda x: x)
    rest = (labels, mask.astype(bool), dict(extras or {}), context)
    return summed_loss(student_hidden, student_unembedding, teacher, *rest)

  return Head(of_outputs)
