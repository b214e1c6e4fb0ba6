"""Cuts the span pairs of rows into blocks of few tokens, and averages the tokens of a block.

A block holds consecutive span pairs whose tokens number at most `size` on each side. So the sums
over the tokens of each span are products with a matrix [size, size] of zeros and ones, and a chunk
of logits is several blocks. A span pair with more tokens on a side is `long`: it is in no block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from egad_jax.losses.probabilities import label_value, log_probabilities
from egad_jax.losses.spans import log_mean, log_or_floor, span_mask
from egad_jax.losses.sparse_projection import vocabulary_major


class SideOrder(NamedTuple):
  """The tokens of one model in all rows, sorted by span pair; tokens of no valid pair come last.

  Attributes:
    tokens: int32 [N], the index of each sorted token among the N = rows x seq tokens.
    pair: int32 [N], the number of each sorted token's valid pair; N for none.
    ends: int32 [N + 1], the number of sorted tokens in front of each valid pair.
  """

  tokens: jax.Array
  pair: jax.Array
  ends: jax.Array


class SpanBlocks(NamedTuple):
  """The valid span pairs of rows, numbered in order, and the blocks that they are cut into.

  Attributes:
    student: the student's tokens.
    teacher: the teacher's tokens.
    mask_indices: int32 [N], the index of each valid pair in the flat mask of span pairs, which has
      N entries; after the last pair come increasing indices >= N.
    starts: int32 [blocks + 1], the number of each block's first pair; that of all pairs after the
      last block.
    num_blocks: int32, the number of blocks.
    is_long: bool [blocks], true at blocks that stand for one long pair.
    num_long: int32, the number of long pairs.
    long_pairs: int32 [blocks], their numbers, in order.
  """

  student: SideOrder
  teacher: SideOrder
  mask_indices: jax.Array
  starts: jax.Array
  num_blocks: jax.Array
  is_long: jax.Array
  num_long: jax.Array
  long_pairs: jax.Array


def cut_into_blocks(
  student_spans: jax.Array, teacher_spans: jax.Array, size: int, *, multiple: int
) -> SpanBlocks:
  """Cuts rows of spans [rows, seq] each, as in `PairedBatch`, into blocks of `size` tokens a side.

  A block takes as many pairs of one row as fit, so two neighbours in a row have together more
  tokens than fit, and there are at most 4 N / size + 2 rows blocks.

  Args:
    student_spans: int32 [rows, seq], the number of each student token's span.
    teacher_spans: int32 [rows, seq], the same for the teacher.
    size: the most tokens of a block on either side.
    multiple: the length of `starts` without its last entry is a multiple of this.
  """
  rows, seq = student_spans.shape
  num_tokens = rows * seq
  mask = span_mask(student_spans, teacher_spans)
  ends_of_rows = jnp.cumsum(jnp.sum(mask, axis=1, dtype=jnp.int32), dtype=jnp.int32)
  valid, num_pairs = mask.reshape(-1), ends_of_rows[-1]
  numbers = jnp.cumsum(valid, dtype=jnp.int32) - 1
  arange = jnp.arange(num_tokens, dtype=jnp.int32)
  mask_indices = jnp.argsort(~valid, stable=True).astype(jnp.int32)
  mask_indices = jnp.where(arange < num_pairs, mask_indices, num_tokens + arange)
  first_of_row = jnp.arange(rows, dtype=jnp.int32)[:, None] * seq

  def order(spans: jax.Array) -> SideOrder:
    known = (spans >= 1) & (spans <= seq)
    index = jnp.where(known, first_of_row + spans - 1, 0).reshape(-1)
    inside = known.reshape(-1) & valid[index]
    pair = jnp.where(inside, numbers[index], num_tokens)
    tokens = jnp.argsort(pair, stable=True).astype(jnp.int32)
    counts = jnp.zeros(num_tokens, jnp.int32).at[pair].add(1, mode="drop")
    return SideOrder(tokens, pair[tokens], jnp.pad(jnp.cumsum(counts, dtype=jnp.int32), (1, 0)))

  sides = order(student_spans), order(teacher_spans)
  most = min(num_tokens, 4 * -(-num_tokens // size) + 2 * rows)
  most = -(-most // multiple) * multiple

  def add_block(carry):
    start, count, starts, is_long = carry
    # The number of pairs in front of which there are no more tokens than fit.
    fits = [jnp.sum(side.ends <= side.ends[start] + size, dtype=jnp.int32) - 1 for side in sides]
    end_of_row = jnp.min(ends_of_rows, where=ends_of_rows > start, initial=num_tokens)
    stop = jnp.minimum(jnp.minimum(*fits), end_of_row)
    is_long = is_long.at[count].set(stop == start)
    stop = jnp.maximum(stop, start + 1)
    return stop, count + 1, starts.at[count + 1].set(stop), is_long

  zero = jnp.int32(0)
  empty = jnp.full(most + 1, num_pairs, jnp.int32).at[0].set(0), jnp.zeros(most, bool)
  _, count, starts, is_long = jax.lax.while_loop(
    lambda carry: carry[0] < num_pairs, add_block, (zero, zero, *empty)
  )
  long_first = jnp.argsort(~is_long, stable=True)
  num_long = jnp.sum(is_long, dtype=jnp.int32)
  return SpanBlocks(*sides, mask_indices, starts, count, is_long, num_long, starts[long_first])


def pairs_of_blocks(layout: SpanBlocks, index: jax.Array, blocks: int, size: int) -> jax.Array:
  """Returns the indices in the flat mask of the pairs of blocks [index, index + blocks).

  Returns:
    int32 [blocks, size]; slots without a pair have different indices >= N.
  """
  start, stop = _bounds(layout, index, blocks)
  numbers = start[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
  num_tokens = layout.mask_indices.size
  nowhere = num_tokens + jnp.arange(blocks * size, dtype=jnp.int32).reshape(blocks, size)
  known = layout.mask_indices[jnp.minimum(numbers, num_tokens - 1)]
  return jnp.where(numbers < stop[:, None], known, nowhere)


def tokens_of_blocks(
  layout: SpanBlocks, side: SideOrder, index: jax.Array, blocks: int, size: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the tokens of one side of the blocks [index, index + blocks).

  Returns:
    (tokens int32 [blocks, size], members bool [blocks, size pairs, size tokens]): indices of
    tokens, different ones >= N where a block has no more; and whether a token is in a pair's span.
  """
  start, stop = _bounds(layout, index, blocks)
  num_tokens = side.tokens.size
  position = side.ends[start][:, None] + jnp.arange(size, dtype=jnp.int32)[None]
  inside = position < side.ends[stop][:, None]
  position = jnp.minimum(position, num_tokens - 1)
  local = jnp.where(inside, side.pair[position] - start[:, None], size)
  members = local[:, None, :] == jnp.arange(size, dtype=jnp.int32)[None, :, None]
  nowhere = num_tokens + jnp.arange(blocks * size, dtype=jnp.int32).reshape(blocks, size)
  return jnp.where(inside, side.tokens[position], nowhere), members


def _bounds(layout: SpanBlocks, index: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array]:
  starts = jax.lax.dynamic_slice_in_dim(layout.starts, index, blocks + 1)
  is_long = jax.lax.dynamic_slice_in_dim(layout.is_long, index, blocks)
  return starts[:-1], jnp.where(is_long, starts[:-1], starts[1:])


class BlockTokens(NamedTuple):
  """The tokens of one model in some blocks, the counterpart of `spans.Positions`.

  Attributes:
    logits: float32 [blocks, size, vocab].
    members: bool [blocks, size pairs, size tokens], whether a token is in a pair's span.
    largest: [blocks, size, 1], the largest logit of each token; None to look for it. If it is
      known, the matmul that makes the logits can sum their exponentials, which spares a pass.
  """

  logits: jax.Array
  members: jax.Array
  largest: jax.Array | None = None

  @property
  def maxima(self) -> jax.Array:
    """The largest logit of each token, [blocks, size, 1]."""
    if self.largest is not None:
      return self.largest
    return jax.lax.stop_gradient(jnp.max(self.logits, axis=-1, keepdims=True))

  @property
  def counts(self) -> jax.Array:
    """The number of tokens of each pair, [blocks, size]; 0 where there is none."""
    return jnp.sum(self.members, axis=-1, dtype=self.logits.dtype)

  def average(self, temperature: float | jax.Array, average: str) -> jax.Array:
    """Returns the probabilities of each pair; see `log_average`."""
    if average == "prob":
      temperature = self._of_tokens(temperature)
      return _mean_probabilities(self.logits, self.maxima, self.members, temperature)
    return jnp.exp(self.log_average(temperature, average))

  def log_average(self, temperature: float | jax.Array, average: str) -> jax.Array:
    """Returns log-probabilities of each pair, [blocks, size, vocab].

    Args:
      temperature: one number, or one per pair, [blocks, size].
      average: one of `SPAN_AVERAGES`.
    """
    if average == "prob":
      return log_or_floor(self.average(temperature, average))
    log_p = log_probabilities(self.logits, temperature=self._of_tokens(temperature))
    if average == "chain_rule":
      return _total(log_p, self.members & (jnp.cumsum(self.members, axis=-1) == 1))
    return log_mean(_total(log_p, self.members), self.counts, average)

  def _of_tokens(self, temperature: float | jax.Array) -> float | jax.Array:
    """Gives each token the temperature of its pair."""
    if isinstance(temperature, jax.Array) and temperature.ndim:
      of_pair = jnp.where(self.members, temperature[..., None], 0)
      # A token of no pair has the temperature 1, because it is divided by.
      return jnp.sum(of_pair, axis=1) + ~jnp.any(self.members, axis=1)
    return temperature

  def nll(self, labels: jax.Array) -> jax.Array:
    """Returns minus the log-probabilities of labels [blocks, size], summed over each pair."""
    log_total = jnp.log(jnp.sum(jnp.exp(self.logits - self.maxima), axis=-1))
    # The label is looked for in the logits, so that one pass over them finds it and the sum.
    nll = log_total - (label_value(self.logits, labels) - self.maxima[..., 0])
    return jnp.sum(jnp.where(self.members, nll[:, None], 0), axis=-1)


def _total(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Sums [blocks, m, vocab] over tokens with weights [blocks, n, m], to [blocks, n, vocab].

  The values must not be rounded to bfloat16. Values and sums lie in memory as the logits do.
  """
  values = jnp.swapaxes(vocabulary_major(values), 1, 2)
  weights = weights.astype(values.dtype)
  total = jnp.einsum("bpt,bvt->bvp", weights, values, precision=jax.lax.Precision.HIGHEST)
  return vocabulary_major(jnp.swapaxes(total, 1, 2))


@jax.custom_vjp
def _mean_probabilities(
  logits: jax.Array, largest: jax.Array, members: jax.Array, temperature: float | jax.Array
) -> jax.Array:
  """Returns the mean probabilities of each pair's tokens, [blocks, size, vocab].

  Logits come out of a matmul, so they are finite, and no pass is spent on those that are not.
  """
  return _mean_and_residuals(logits, largest, members, temperature)[0]


def _mean_and_residuals(logits, largest, members, temperature):
  inverse = 1 / jnp.asarray(temperature, logits.dtype)
  inverse = inverse[..., None] if inverse.ndim else inverse
  log_total = jnp.log(jnp.sum(jnp.exp((logits - largest) * inverse), axis=-1, keepdims=True))
  counts = jnp.maximum(jnp.sum(members, axis=-1, dtype=logits.dtype), 1)
  weights = members / counts[..., None]
  probabilities = jnp.exp((logits - largest) * inverse - log_total)
  return _total(probabilities, weights), (logits, largest, log_total, inverse, weights)


def _mean_backward(residuals, cotangent):
  logits, largest, log_total, inverse, weights = residuals
  of_tokens = _total(cotangent, weights.swapaxes(1, 2))
  probabilities = jnp.exp((logits - largest) * inverse - log_total)
  inner = jnp.sum(of_tokens * probabilities, axis=-1, keepdims=True)
  return probabilities * (of_tokens - inner) * inverse, None, None, None


_mean_probabilities.defvjp(_mean_and_residuals, _mean_backward)
