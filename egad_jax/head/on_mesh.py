"""The choice of head for a mesh: the tensor axis splits the vocabulary, or else the sequence."""

from __future__ import annotations

from typing import Any

import jax

from egad_jax.head.chunked import distillation_head
from egad_jax.head.inputs import Head, TokenLoss
from egad_jax.head.sharded import sharded_head
from egad_jax.head.tpu import kernels_of
from egad_jax.head.vocab_parallel import vocab_parallel_head


def vocabulary_parts(mesh: jax.sharding.Mesh, tensor_axis: str, vocab_size: int) -> int:
  """Returns how many devices split the vocabulary: 1 if the tensor axis does not divide it."""
  devices = mesh.shape[tensor_axis]
  return devices if vocab_size % devices == 0 else 1


def head_on_mesh(
  token_loss: TokenLoss,
  mesh: jax.sharding.Mesh,
  *,
  batch_axes: tuple[str, ...],
  tensor_axis: str,
  vocab_size: int,
  chunk_size: int | None = None,
  kernels: bool = True,
  student_soft_cap: float | None = None,
  teacher_soft_cap: float | None = None,
) -> Head:
  """Makes `distillation_head` for a mesh; same value and gradient, and no device repeats work.

  The result is `vocab_parallel_head` where the tensor axis divides the vocabulary. Otherwise it is
  `sharded_head` with the sequence split over that axis, which must then divide the sequence length:
  splitting the vocabulary unevenly moves more data than gathering whole unembeddings.

  Args:
    token_loss: as for `distillation_head`.
    mesh: the mesh that the caller's arrays are sharded over.
    batch_axes: mesh axes that divide the first axis of the hidden states.
    tensor_axis: the mesh axis over which the batch is not split.
    vocab_size: as for `distillation_head`, but it must be given.
    chunk_size: as for `distillation_head`.
    kernels: whether to use the Pallas kernels where the devices, dtypes and sizes allow it; they
      are never used with a split vocabulary.
    student_soft_cap: as for `distillation_head`.
    teacher_soft_cap: as for `distillation_head`.
  """
  options: dict[str, Any] = {
    "chunk_size": chunk_size,
    "vocab_size": vocab_size,
    "student_soft_cap": student_soft_cap,
    "teacher_soft_cap": teacher_soft_cap,
  }
  if vocabulary_parts(mesh, tensor_axis, vocab_size) > 1:
    return vocab_parallel_head(
      token_loss, mesh, batch_axes=batch_axes, vocab_axis=tensor_axis, **options
    )
  # All devices of a mesh are of one kind.
  found = kernels_of(mesh.devices.flat[0]) if kernels else None
  head = distillation_head(token_loss, **options, kernels=found)
  return sharded_head(head, mesh, batch_axes=batch_axes, sequence_axes=(tensor_axis,))
