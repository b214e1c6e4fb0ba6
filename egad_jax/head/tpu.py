"""A chunk of the head computed by the TPU kernels: supported chips and shapes, tiles, the step."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from egad_jax.head import tpu_kernels as kernels
from egad_jax.head.closed_form import entropy_of_sums, gradient_rows, is_entry
from egad_jax.losses.entropy_guided import EntropyGuidedLoss
from egad_jax.types import Stats

LANES = kernels.LANES
_MIB = 2**20
# Share of the vector memory that a kernel's blocks may take; the compiler needs some of the rest.
_SHARE = 0.75
_ROWS = (1024, 768, 512, 384, 256, 128)
_COLUMNS = (512, 256, 128)


class Kernels(NamedTuple):
  """What the kernels need to know about one kind of chip.

  Attributes:
    vector_memory: size of one core's vector memory, in bytes.
    cores: number of cores that run one program together: 2 on v5p; on TPU7x each core is a device
      of its own.
    largest_chunk: most tokens in a chunk; in larger chunks the matmuls hide no more of the memory
      traffic.
    interpret: whether to run the kernels in Pallas' interpreter, on any device and slowly, for
      tests.
  """

  vector_memory: int
  cores: int
  largest_chunk: int = 1024
  interpret: bool = False

  def options(self, *semantics: Literal["parallel", "arbitrary"]) -> dict[str, Any]:
    """Returns keyword arguments of `pallas_call`; `semantics` has one entry per grid dimension."""
    if self.interpret:
      return {"interpret": True}
    limit = int(self.vector_memory * 0.9)
    return {
      "compiler_params": pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=limit)
    }


# The chips that the kernels were compiled for, by `device_kind`; other chips use no kernels.
_CHIPS = {
  "TPU v5 lite": Kernels(128 * _MIB, 1),
  "TPU v5": Kernels(64 * _MIB, 2),
  "TPU v6 lite": Kernels(128 * _MIB, 1, 2048),
  "TPU7x": Kernels(64 * _MIB, 1),
}
_CHIPS |= {
  "TPU v5e": _CHIPS["TPU v5 lite"],
  "TPU v5p": _CHIPS["TPU v5"],
  "TPU v6e": _CHIPS["TPU v6 lite"],
}


def kernels_of(device: Any) -> Kernels | None:
  """Returns the kernels of a device's kind; None if it has none."""
  return _CHIPS.get(device.device_kind) if device.platform == "tpu" else None


class Tiles(NamedTuple):
  """Sizes of the blocks of logits that each kernel works on.

  Attributes:
    teacher: (rows, columns, rows computed at once) of the teacher's logits.
    student: (rows, columns, rows computed at once) of the student's logits.
    gradient: (rows, columns) of the gradient of the logits.
  """

  teacher: tuple[int, int, int]
  student: tuple[int, int, int]
  gradient: tuple[int, int]


def chunk_tiles(kernels_: Kernels, chunk: int, student_dim: int, teacher_dim: int) -> Tiles | None:
  """Returns the largest tiles that fit; None if none fits or a size is no multiple of 128.

  A block counts twice in the vector memory when the next one is fetched while it is in use.

  Args:
    kernels_: the chip's kernels, whose vector memory is the budget.
    chunk: tokens per chunk.
    student_dim: width of the student's hidden states.
    teacher_dim: width of the teacher's hidden states.

  >>> chunk_tiles(_CHIPS["TPU v5 lite"], 1024, 1024, 4096)
  Tiles(teacher=(1024, 512, 256), student=(1024, 512, 1024), gradient=(1024, 512))
  """
  if chunk % LANES or student_dim % LANES or teacher_dim % LANES:
    return None
  budget = kernels_.vector_memory * _SHARE

  def largest(count: Any) -> tuple[int, int] | None:
    for columns in _COLUMNS:
      for rows in _ROWS:
        if chunk % rows == 0 and count(rows, columns) <= budget:
          return rows, columns
    return None

  def logits(dim: int, blocks: int, sums: int) -> Any:
    # Hidden states and weights have 2 bytes per value; logits, sums and intermediates have 4.
    def count(rows: int, columns: int) -> int:
      arrays = 2 * 2 * dim * (rows + columns) + 2 * 4 * rows * (blocks * columns + sums * LANES)
      return arrays + 4 * 4 * rows * columns

    return count

  def gradient(rows: int, columns: int) -> int:
    arrays = 2 * 4 * rows * 2 * columns + 2 * 2 * student_dim * (rows + columns)
    whole = 4 * chunk * student_dim + 2 * 4 * chunk * LANES
    return arrays + whole + 5 * 4 * student_dim * columns + 4 * 4 * rows * columns

  found = (
    largest(logits(teacher_dim, 1, 3)),
    largest(logits(student_dim, 2, 8)),
    largest(gradient),
  )
  if found[0] is None or found[1] is None or found[2] is None:
    return None
  # The teacher's matmul has a long contraction, beside which the sums cost little, so the kernel
  # may work on few rows at once and its program stays small.
  at_once = next(rows for rows in (256, 128) if found[0][0] % rows == 0)
  return Tiles((*found[0], at_once), (*found[1], found[1][0]), found[2])


class ChunkByKernels:
  """The kernels' computation of one chunk, for given tiles, vocabulary and soft caps."""

  def __init__(
    self,
    token_loss: EntropyGuidedLoss,
    kernels_: Kernels,
    tiles: Tiles,
    *,
    vocab: int,
    student_soft_cap: float | None,
    teacher_soft_cap: float | None,
  ):
    self._token_loss, self._kernels, self._tiles, self._vocab = token_loss, kernels_, tiles, vocab
    self._soft_caps = student_soft_cap, teacher_soft_cap

  def step(
    self,
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    teacher_hidden: jax.Array,
    teacher_unembedding: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    context: Any,
    unembedding_gradient: jax.Array,
  ) -> tuple[jax.Array, Stats, jax.Array, jax.Array]:
    """Computes loss, stats and gradients of one chunk.

    Args:
      student_hidden: the student's hidden states, bfloat16 [chunk, Ds].
      student_unembedding: the student's unembedding, bfloat16 [>= vocab, Ds].
      teacher_hidden: the teacher's hidden states, bfloat16 [chunk, Dt].
      teacher_unembedding: the teacher's unembedding, bfloat16 [>= vocab, Dt].
      labels: int [chunk], the token that each row of logits predicts.
      mask: bool [chunk], false at tokens whose gradient is zero.
      context: the pytree that `token_loss.guide` reads.
      unembedding_gradient: float32 [vocab, Ds], the sum over earlier chunks.

    Returns:
      (loss [chunk], stats {name: [chunk]}, gradient of the student's hidden states float32
      [chunk, Ds], `unembedding_gradient` plus this chunk's gradient).
    """
    common = {"vocab": self._vocab, "options": self._kernels.options}
    student_cap, teacher_cap = self._soft_caps
    teacher_logits, *sums = kernels.teacher_logits(
      teacher_hidden,
      teacher_unembedding,
      tile=self._tiles.teacher,
      soft_cap=teacher_cap,
      **common,
    )
    teacher_maximum, total, weighted = _joined(*sums)
    teacher_entropy = entropy_of_sums(total, weighted)
    guidance = self._token_loss.guide(teacher_entropy, context)
    rows = gradient_rows(self._token_loss, guidance, labels, mask, self._vocab, jnp.float32)
    numbers = {
      kernels.INVERSE_TEMPERATURE: rows.inverse_temperature,
      kernels.TEACHER_MAX: teacher_maximum,
      kernels.LABEL: labels.astype(jnp.float32),
    }
    student_logits, sum_p, cross, *sums, sum_q, sum_1, weighted, label_logit = (
      kernels.student_logits(
        student_hidden,
        student_unembedding,
        teacher_logits,
        _by_lane(numbers),
        tile=self._tiles.student,
        soft_cap=student_cap,
        **common,
      )
    )
    lane_maximum = sums[0]
    maximum, total, weighted = _joined(lane_maximum, sum_1, weighted)
    inverse = rows.inverse_temperature
    shrink = jnp.exp((lane_maximum - maximum[:, None]) * inverse[:, None])
    sum_q = jnp.sum(sum_q * shrink, axis=1)
    sum_p, cross, label_logit = (jnp.sum(x, axis=1) for x in (sum_p, cross, label_logit))
    log_p, log_q, log_1 = jnp.log(sum_p), jnp.log(sum_q), jnp.log(total)
    apart = (maximum - teacher_maximum) * inverse
    loss, stats = self._token_loss.of_sums(
      guidance,
      divergence=inverse * cross / sum_p - log_p + log_q + apart,
      cross_entropy=jnp.where(is_entry(labels, self._vocab), log_1 + maximum - label_logit, 0),
      teacher_entropy=teacher_entropy,
      student_entropy=entropy_of_sums(total, weighted),
    )
    numbers |= {
      kernels.LOG_P: teacher_maximum * inverse + log_p,
      kernels.LOG_Q: maximum * inverse + log_q,
      kernels.LOG_1: maximum + log_1,
      kernels.KL: rows.kl,
      kernels.CROSS_ENTROPY: rows.cross_entropy,
    }
    hidden_gradient, unembedding_gradient = kernels.logits_gradient(
      teacher_logits,
      student_logits,
      student_hidden,
      student_unembedding,
      _by_lane(numbers),
      unembedding_gradient,
      tile=self._tiles.gradient,
      cores=self._kernels.cores,
      has_cross_entropy=bool(self._token_loss.ce_weight),
      soft_cap=student_cap,
      **common,
    )
    return loss, stats, jnp.sum(hidden_gradient, axis=0), unembedding_gradient


def _joined(
  maximum: jax.Array, total: jax.Array, weighted: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Joins sums by lane [n, 128] to sums per token [n], with d = z - the token's maximum logit."""
  of_row = jnp.max(maximum, axis=1, keepdims=True)
  lower = maximum - of_row
  shrink = jnp.exp(lower)
  weighted = jnp.sum((weighted + total * lower) * shrink, axis=1)
  return of_row[:, 0], jnp.sum(total * shrink, axis=1), weighted


def _by_lane(numbers: dict[int, jax.Array]) -> jax.Array:
  """Returns [n, 128]: each entry {lane: [n]} of `numbers` in its lane, zeros in the others."""
  lanes = [numbers.get(lane) for lane in range(kernels.CROSS_ENTROPY + 1)]
  rows = next(iter(numbers.values()))
  filled = jnp.stack([jnp.zeros_like(rows) if x is None else x for x in lanes], axis=1)
  return jnp.pad(filled, ((0, 0), (0, LANES - len(lanes))))


# Largest number of elements in a chunk's logits when no chunk size is given: 1.25 GiB in float32.
_CHUNK_ELEMENTS = 5 * 2**26


def kernel_chunk_size(
  kernels_: Kernels, chunk_size: int | None, num_tokens: int, vocab: int
) -> int:
  """Returns the tokens per chunk, a multiple of 128.

  Args:
    kernels_: the chip's kernels; `largest_chunk` is the upper bound when no size is asked for.
    chunk_size: tokens asked for, rounded down to a multiple of 128 (of 256 if at least 256); None
      for the largest power of two whose float32 logits take at most 1.25 GiB.
    num_tokens: number of tokens that the head is called with; no chunk is larger than this, rounded
      up to a multiple of 128.
    vocab: number of vocabulary entries.

  >>> kernel_chunk_size(Kernels(2**27, 1), None, 8192, 151_936)
  1024
  >>> kernel_chunk_size(Kernels(2**27, 1, 2048), None, 8192, 262_144)
  1024
  >>> kernel_chunk_size(Kernels(2**27, 1), 1000, 300, 49_152)
  384
  """
  if chunk_size is None:
    # A power of two divides most batches and is a multiple of large tiles.
    affordable = max(LANES, _CHUNK_ELEMENTS // vocab)
    chunk_size = min(kernels_.largest_chunk, 1 << affordable.bit_length() - 1)
  # Multiples of 256 allow tiles of more rows.
  unit = 2 * LANES if chunk_size >= 2 * LANES else LANES
  whole = -(-num_tokens // LANES) * LANES
  return min(whole, max(LANES, chunk_size // unit * unit))


def chunk_by_kernels(
  token_loss: EntropyGuidedLoss,
  kernels_: Kernels,
  arrays: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
  chunk: int,
  **options: Any,
) -> ChunkByKernels | None:
  """Returns the kernels' computation of a chunk; None if no tiles fit or a dtype is not bfloat16.

  Args:
    token_loss: a loss that `has_closed_form`.
    kernels_: the chip's kernels, from `kernels_of`.
    arrays: student's hidden states and unembedding, teacher's hidden states and unembedding; only
      the dtypes and widths of the hidden states are read.
    chunk: tokens per chunk, from `kernel_chunk_size`.
    **options: the keyword arguments of `ChunkByKernels`.
  """
  dims = arrays[0].shape[-1], arrays[2].shape[-1]
  tiles = chunk_tiles(kernels_, chunk, *dims)
  if tiles is None or {arrays[0].dtype, arrays[2].dtype} != {jnp.dtype(jnp.bfloat16)}:
    return None
  return ChunkByKernels(token_loss, kernels_, tiles, **options)
