"""The head with both unembeddings split over the vocabulary, so that no device holds all of either.

Every device along the vocabulary's mesh axis sees the same tokens and makes and keeps its own
columns of their logits. A loss then exchanges only a few scalars per token, such as sums and maxima
over the vocabulary. This module does not list them: the loop is that of `distillation_head` under a
`shard_map` that is manual over the batch's axes and leaves the vocabulary's axis to the compiler.
The compiler splits any `token_loss`: a reduction becomes partial reductions and an all-reduce of
[chunk], and element-wise work stays on the device that holds the columns. A loss that needs more
than reductions over the vocabulary (one that sorts it, say) is still exact, at the cost of moving
logits between devices.
"""

from __future__ import annotations

import jax
from jax.sharding import NamedSharding, PartitionSpec

from egad_jax.head.chunked import distillation_head
from egad_jax.head.inputs import Head, TokenLoss
from egad_jax.head.sharded import sharded_head


def vocab_parallel_head(
  token_loss: TokenLoss,
  mesh: jax.sharding.Mesh,
  *,
  batch_axes: tuple[str, ...],
  vocab_axis: str,
  chunk_size: int | None = None,
  vocab_size: int | None = None,
  student_soft_cap: float | None = None,
  teacher_soft_cap: float | None = None,
) -> Head:
  """Makes `distillation_head` for a vocabulary split over a mesh axis; same value and gradient.

  `sharded_head` would split the sequence over that axis and gather whole unembeddings. Here the
  memory for unembeddings, for their gradient and for a chunk's logits falls with the size of the
  axis, and the gradient of the hidden states is summed over the axis in every chunk. Over the
  batch's axes the unembeddings are gathered once, before the loop, and the unembedding's gradient
  is summed once, after it. Devices along the vocabulary's axis have the same tokens and hence the
  same number of chunks; other devices need not wait for each other.

  Args:
    token_loss: as for `distillation_head`.
    mesh: the mesh that the caller's arrays are sharded over; the vocabulary's axis must be
      `AxisType.Auto`.
    batch_axes: mesh axes that divide the first axis of the hidden states.
    vocab_axis: mesh axis that the vocabulary is split over; its size need not divide the
      vocabulary.
    chunk_size: as for `distillation_head`.
    vocab_size: as for `distillation_head`.
    student_soft_cap: as for `distillation_head`.
    teacher_soft_cap: as for `distillation_head`.
  """
  head = distillation_head(
    token_loss,
    chunk_size=chunk_size,
    vocab_size=vocab_size,
    student_soft_cap=student_soft_cap,
    teacher_soft_cap=teacher_soft_cap,
    vocab_sharding=NamedSharding(mesh, PartitionSpec(vocab_axis)),
  )
  if mesh.size == mesh.shape[vocab_axis]:
    # No axis is left to split manually, and XLA refuses manual axes that all have size 1.
    return head
  return sharded_head(head, mesh, batch_axes=batch_axes, automatic_axes=(vocab_axis,))
