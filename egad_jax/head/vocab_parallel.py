"""The head with the unembeddings split over the vocabulary: no device holds all of either.

Every device of the vocabulary's mesh axis sees the same tokens, makes its own columns of their
logits and keeps them. What a loss needs of a whole row is then a few scalars per token: sums and
maxima over the vocabulary. Which ones is not spelled here: the loop is `distillation_head` itself
under a `shard_map` that is manual over the axes of the batch and leaves the vocabulary's axis to
the compiler. That splits any `token_loss`: reductions become partial ones and an all-reduce of
[chunk], element-wise work stays where its columns are. A loss that does more than reduce a row
(sorts it, say) is still exact, and pays for moving rows.
"""

from __future__ import annotations

import jax
from jax.sharding import NamedSharding, PartitionSpec

from egad_jax.head.chunked import Head, TokenLoss, distillation_head
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
  """`distillation_head` on a mesh, its vocabulary split over one axis; same value and gradient.

  Against `sharded_head`, which splits positions over that axis and gathers whole unembeddings:
  memory for them, for their gradient and for a chunk's logits falls with the size of the axis; the
  hidden states' gradient is summed over the axis chunk by chunk. The batch's axes are gathered
  once, outside the loop, and the unembedding's gradient is summed over them once, after it.
  Devices of the vocabulary's axis share their tokens, hence the number of chunks; others need not
  wait for each other.

  Args:
    token_loss: as for `distillation_head`.
    mesh: the mesh that the caller's arrays live on; the vocabulary's axis must be `AxisType.Auto`.
    batch_axes: mesh axes that divide the first axis of the hidden states.
    vocab_axis: mesh axis that the vocabulary is split over; it need not divide it.
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
    # Nothing is left to split by hand, and XLA refuses manual axes that are all of one device.
    return head
  return sharded_head(head, mesh, batch_axes=batch_axes, automatic_axes=(vocab_axis,))
