"""Three Pallas TPU kernels for a chunk of the head; their sums need no extra pass over the logits.

XLA writes the logits of a chunk and reads them back for every reduction that depends on another:
each pass over the logits in HBM costs a tenth of the time of all matmuls. Here the sums are taken
while the next matmul keeps the matrix units busy:

  teacher_logits   z_t = h_t W_t^T and the sums for its entropy, which then gives T and the weights
  student_logits   z_s = h_s W_s^T and all sums at T and at 1; reads the teacher's logits once more
  logits_gradient  the gradient of the logits, never in HBM, times W_s and times h_s

Sums over the vocabulary are kept by lane, one for each of the 128 columns that a vector holds, and
joined by XLA at the end. Each lane keeps a running maximum, and its sums are rescaled when the
maximum grows. The last block of columns may reach past the vocabulary; values read there are
replaced before they are used. The kernels compute the forward KL only; the formulas are in
`closed_form`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
# The logit of a column past the vocabulary: finite, because differences of two of them occur.
_NOTHING = -1e30
# The number of rows that a bfloat16 vector packs.
_PACKED = 16
# The lane of each number in the array [chunk, 128] of numbers per token.
(INVERSE_TEMPERATURE, TEACHER_MAX, LABEL, LOG_P, LOG_Q, LOG_1, KL, CROSS_ENTROPY) = range(8)


def _by_lanes(width: int) -> list[slice]:
  return [slice(start, start + LANES) for start in range(0, width, LANES)]


def _exists(tile: Any, width: int, columns: slice, vocab: int) -> jax.Array:
  """Bool [1, LANES], true at the columns of a tile that are entries of the vocabulary."""
  first = tile * width + columns.start
  return first + jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1) < vocab


def _logits(hidden: jax.Array, weight: jax.Array, soft_cap: float | None) -> jax.Array:
  logits = jax.lax.dot_general(
    hidden, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def _column(numbers: jax.Array, lane: int) -> jax.Array:
  return jnp.broadcast_to(numbers[:, lane : lane + 1], numbers.shape)


def _teacher_kernel(hidden, weight, logits, maximum, total, weighted, *, rows, vocab, soft_cap):
  tile = pl.program_id(1)
  width = logits.shape[1]

  @pl.when(tile == 0)
  def _():
    maximum[...] = jnp.full_like(maximum, _NOTHING)
    total[...] = jnp.zeros_like(total)
    weighted[...] = jnp.zeros_like(weighted)

  def some_rows(i, _):
    at = pl.ds(pl.multiple_of(i * rows, rows), rows)
    z = _logits(hidden[at, :], weight[...], soft_cap)
    logits[at, :] = z
    parts = [z[:, columns] for columns in _by_lanes(width)]
    if vocab % width:
      exists = [_exists(tile, width, columns, vocab) for columns in _by_lanes(width)]
      parts = [jnp.where(e, part, _NOTHING) for e, part in zip(exists, parts, strict=True)]
    old = maximum[at, :]
    new = functools.reduce(jnp.maximum, parts, old)
    shrink = jnp.exp(old - new)
    s, u = total[at, :], weighted[at, :]
    u = (u + s * (old - new)) * shrink
    s = s * shrink
    for part in parts:
      d = part - new
      e = jnp.exp(d)
      s, u = s + e, u + e * d
    maximum[at, :], total[at, :], weighted[at, :] = new, s, u
    return 0

  jax.lax.fori_loop(0, logits.shape[0] // rows, some_rows, 0)


def _student_kernel(
  hidden,
  weight,
  teacher_logits,
  numbers,
  logits,
  sum_p,
  cross,
  maximum,
  sum_q,
  sum_1,
  weighted,
  label_logit,
  *,
  rows,
  vocab,
  soft_cap,
):
  tile = pl.program_id(1)
  width = logits.shape[1]

  @pl.when(tile == 0)
  def _():
    maximum[...] = jnp.full_like(maximum, _NOTHING)
    for sums in (sum_p, cross, sum_q, sum_1, weighted, label_logit):
      sums[...] = jnp.zeros_like(sums)

  def some_rows(i, _):
    at = pl.ds(pl.multiple_of(i * rows, rows), rows)
    z = _logits(hidden[at, :], weight[...], soft_cap)
    logits[at, :] = z
    inverse = _column(numbers[at, :], INVERSE_TEMPERATURE)
    teacher_maximum = _column(numbers[at, :], TEACHER_MAX)
    # The label's column, counted from the start of this tile.
    label = _column(numbers[at, :], LABEL).astype(jnp.int32) - tile * width
    lane = jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
    parts = [(z[:, columns], teacher_logits[at, columns]) for columns in _by_lanes(width)]
    if vocab % width:
      exists = [_exists(tile, width, columns, vocab) for columns in _by_lanes(width)]
      parts = [
        (jnp.where(e, s, _NOTHING), jnp.where(e, t, _NOTHING))
        for e, (s, t) in zip(exists, parts, strict=True)
      ]
    old = maximum[at, :]
    new = functools.reduce(jnp.maximum, (student for student, _ in parts), old)
    shrink = jnp.exp(old - new)
    total = sum_1[at, :]
    u = (weighted[at, :] + total * (old - new)) * shrink
    total = total * shrink
    q = sum_q[at, :] * jnp.exp((old - new) * inverse)
    p, c, y = sum_p[at, :], cross[at, :], label_logit[at, :]
    for columns, (student, teacher) in zip(_by_lanes(width), parts, strict=True):
      d = student - new
      e = jnp.exp(d)
      total, u = total + e, u + e * d
      q = q + jnp.exp(d * inverse)
      e = jnp.exp((teacher - teacher_maximum) * inverse)
      p, c = p + e, c + e * (teacher - student)
      y = y + jnp.where(lane == label - columns.start, student, 0.0)
    maximum[at, :], sum_1[at, :], weighted[at, :], sum_q[at, :] = new, total, u, q
    sum_p[at, :], cross[at, :], label_logit[at, :] = p, c, y
    return 0

  jax.lax.fori_loop(0, logits.shape[0] // rows, some_rows, 0)


def _gradient_kernel(
  teacher_logits,
  student_logits,
  hidden,
  weight,
  numbers,
  unembedding_gradient_before,
  hidden_gradient,
  unembedding_gradient,
  hidden_sum,
  *,
  vocab,
  has_cross_entropy,
  soft_cap,
):
  core, step, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
  steps, blocks = pl.num_programs(1), pl.num_programs(2)
  rows, width = student_logits.shape
  tile = core * steps + step

  @pl.when((block == 0) & (step == 0))
  def _():
    hidden_sum[...] = jnp.zeros_like(hidden_sum)

  # When the tiles do not divide evenly among the cores, the last steps of the last core have none.
  @pl.when(tile * width < vocab)
  def _():
    @pl.when(block == 0)
    def _():
      unembedding_gradient[...] = unembedding_gradient_before[...]

    if vocab % width:

      @pl.when((tile + 1) * width > vocab)
      def _():
        # The gradient is zero past the vocabulary, but the weights read there may be NaN.
        start = vocab % width // _PACKED * _PACKED
        tail = weight[start:, :].astype(jnp.float32)
        row = start + jax.lax.broadcasted_iota(jnp.int32, tail.shape, 0)
        weight[start:, :] = jnp.where(row < vocab % width, tail, 0.0).astype(weight.dtype)

    at = pl.ds(pl.multiple_of(block * rows, rows), rows)
    of = functools.partial(_column, numbers[at, :])
    inverse, log_p, log_q = of(INVERSE_TEMPERATURE), of(LOG_P), of(LOG_Q)
    log_1, kl, cross_entropy = of(LOG_1), of(KL), of(CROSS_ENTROPY)
    label = of(LABEL).astype(jnp.int32) - tile * width
    lane = jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
    parts = []
    for columns in _by_lanes(width):
      student, teacher = student_logits[:, columns], teacher_logits[:, columns]
      part = kl * (jnp.exp(student * inverse - log_q) - jnp.exp(teacher * inverse - log_p))
      if has_cross_entropy:
        at_label = jnp.where(lane == label - columns.start, 1.0, 0.0)
        part += cross_entropy * (jnp.exp(student - log_1) - at_label)
      if soft_cap is not None:
        part *= 1 - (student / soft_cap) ** 2
      if vocab % width:
        part = jnp.where(_exists(tile, width, columns, vocab), part, 0.0)
      parts.append(part.astype(hidden.dtype))
    gradient = jnp.concatenate(parts, axis=1)
    hidden_sum[at, :] += jnp.dot(gradient, weight[...], preferred_element_type=jnp.float32)
    unembedding_gradient[...] += jax.lax.dot_general(
      gradient, hidden[...], (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )

  @pl.when((step == steps - 1) & (block == blocks - 1))
  def _():
    pltpu.sync_copy(hidden_sum, hidden_gradient.at[core])


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def teacher_logits(hidden, weight, *, tile, vocab, soft_cap, options):
  """Computes the teacher's logits and the sums that their entropy needs.

  Args:
    hidden: the teacher's hidden states, bfloat16 [chunk, Dt].
    weight: the teacher's unembedding, bfloat16 [>= vocab, Dt].
    tile: (rows, columns, rows computed at once) of a block of logits.
    vocab: number of vocabulary entries.
    soft_cap: cap of the logits, `cap * tanh(logits / cap)`; None for no cap.
    options: function of the grid's dimension semantics -> keyword arguments of `pallas_call`.

  Returns:
    float32 logits [chunk, vocab], and by lane [chunk, 128]: maximum, sum exp(d), sum exp(d) d,
    with d = z - that lane's maximum.
  """
  rows, width, at_once = tile
  chunk, dim = hidden.shape
  sums = pl.BlockSpec((rows, LANES), lambda i, j: (i, 0))
  return pl.pallas_call(
    functools.partial(_teacher_kernel, rows=at_once, vocab=vocab, soft_cap=soft_cap),
    grid=(chunk // rows, pl.cdiv(vocab, width)),
    in_specs=[
      pl.BlockSpec((rows, dim), lambda i, j: (i, 0)),
      pl.BlockSpec((width, dim), lambda i, j: (j, 0)),
    ],
    out_specs=[pl.BlockSpec((rows, width), lambda i, j: (i, j)), *[sums] * 3],
    out_shape=[_float32(chunk, vocab), *[_float32(chunk, LANES)] * 3],
    name="teacher_logits",
    **options("parallel", "arbitrary"),
  )(hidden, weight)


def student_logits(hidden, weight, teacher_logits, numbers, *, tile, vocab, soft_cap, options):
  """Computes the student's logits and the sums over both models' logits.

  Args:
    hidden: the student's hidden states, bfloat16 [chunk, Ds].
    weight: the student's unembedding, bfloat16 [>= vocab, Ds].
    teacher_logits: float32 [chunk, vocab], soft cap applied.
    numbers: float32 [chunk, 128], with the lanes `INVERSE_TEMPERATURE`, `TEACHER_MAX` and `LABEL`
      filled.
    tile: as for `teacher_logits`.
    vocab: number of vocabulary entries.
    soft_cap: cap of the student's logits; None for no cap.
    options: as for `teacher_logits`.

  Returns:
    float32 logits [chunk, vocab], and by lane [chunk, 128]: sum p and sum p (z_t - z_s) with
    p = exp((z_t - teacher's maximum) / T); the student's maximum, sum exp(d / T), sum exp(d) and
    sum exp(d) d, with d = z_s - that lane's maximum; the student's logit at the label.
  """
  rows, width, at_once = tile
  chunk, dim = hidden.shape
  sums = pl.BlockSpec((rows, LANES), lambda i, j: (i, 0))
  block = pl.BlockSpec((rows, width), lambda i, j: (i, j))
  return pl.pallas_call(
    functools.partial(_student_kernel, rows=at_once, vocab=vocab, soft_cap=soft_cap),
    grid=(chunk // rows, pl.cdiv(vocab, width)),
    in_specs=[
      pl.BlockSpec((rows, dim), lambda i, j: (i, 0)),
      pl.BlockSpec((width, dim), lambda i, j: (j, 0)),
      block,
      sums,
    ],
    out_specs=[block, *[sums] * 7],
    out_shape=[_float32(*teacher_logits.shape), *[_float32(chunk, LANES)] * 7],
    name="student_logits",
    **options("parallel", "arbitrary"),
  )(hidden, weight, teacher_logits, numbers)


def logits_gradient(
  teacher_logits,
  student_logits,
  hidden,
  weight,
  numbers,
  unembedding_gradient,
  *,
  tile,
  cores,
  vocab,
  has_cross_entropy,
  soft_cap,
  options,
):
  """Computes the gradients of the student's hidden states and unembedding.

  Each block of the gradient of the logits is multiplied as soon as it is made and never stored.

  Args:
    teacher_logits: float32 [chunk, vocab], soft cap applied.
    student_logits: float32 [chunk, vocab], soft cap applied.
    hidden: the student's hidden states, bfloat16 [chunk, Ds].
    weight: the student's unembedding, bfloat16 [>= vocab, Ds].
    numbers: float32 [chunk, 128], with all the lanes named in this module filled.
    unembedding_gradient: float32 [vocab, Ds], the sum over earlier chunks.
    tile: (rows, columns) of a block of logits.
    cores: number of cores that share the vocabulary.
    vocab: number of vocabulary entries.
    has_cross_entropy: whether the lane `CROSS_ENTROPY` has values other than 0.
    soft_cap: cap of the student's logits; None for no cap.
    options: as for `teacher_logits`.

  Returns:
    float32: the part of each core of the hidden states' gradient [cores, chunk, Ds], and
    `unembedding_gradient` plus this chunk's gradient.
  """
  rows, width = tile
  chunk, dim = hidden.shape
  tiles = pl.cdiv(vocab, width)
  steps = pl.cdiv(tiles, cores)

  def tile_of(core: Any, step: Any) -> Any:
    return jnp.minimum(core * steps + step, tiles - 1)

  block = pl.BlockSpec((rows, width), lambda c, j, i: (i, tile_of(c, j)))
  weights = pl.BlockSpec((width, dim), lambda c, j, i: (tile_of(c, j), 0))
  return pl.pallas_call(
    functools.partial(
      _gradient_kernel, vocab=vocab, has_cross_entropy=has_cross_entropy, soft_cap=soft_cap
    ),
    grid=(cores, steps, chunk // rows),
    in_specs=[
      block,
      block,
      pl.BlockSpec((rows, dim), lambda c, j, i: (i, 0)),
      weights,
      pl.BlockSpec((chunk, LANES), lambda c, j, i: (0, 0)),
      weights,
    ],
    out_specs=[pl.BlockSpec(memory_space=pl.ANY), weights],
    out_shape=[_float32(cores, chunk, dim), _float32(vocab, dim)],
    scratch_shapes=[pltpu.VMEM((chunk, dim), jnp.float32)],
    input_output_aliases={5: 1},
    name="logits_gradient",
    **options("parallel", "arbitrary", "arbitrary"),
  )(teacher_logits, student_logits, hidden, weight, numbers, unembedding_gradient)
