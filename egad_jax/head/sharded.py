"""The head on a mesh that splits tokens: each device computes whole logits of its own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from egad_jax.head.inputs import Head
from egad_jax.head.teacher import mapped
from egad_jax.teachers.outputs import Outputs


def sharded_head(
  head: Head,
  mesh: jax.sharding.Mesh,
  *,
  batch_axes: tuple[str, ...],
  sequence_axes: tuple[str, ...] = (),
  automatic_axes: tuple[str, ...] = (),
) -> Head:
  """Runs `head` on each device's tokens; same arguments, value and gradient as `head`.

  Tokens are split over all the axes given, so no device repeats another's work: rows over
  `batch_axes`, the sequence over `sequence_axes`. Unembeddings are gathered once, before the head's
  loop, and the gradient of the student's unembedding is summed once, after it. Chunks are cut from
  each device's own tokens: cutting them from the sharded global array would move every chunk
  between devices.

  Args:
    head: the head of one device, from `distillation_head` or `dense_head`.
    mesh: the mesh that the caller's arrays are sharded over.
    batch_axes: mesh axes that divide the first axis of the hidden states; () for none.
    sequence_axes: mesh axes that divide the second axis of the hidden states; () for none.
    automatic_axes: mesh axes over which `head` splits its own arrays by sharding constraints; ()
      for none.
  """
  tokens = PartitionSpec(batch_axes or None, sequence_axes or None)
  hidden = PartitionSpec(*tokens, None)
  whole = PartitionSpec()
  device = PartitionSpec((*batch_axes, *sequence_axes))

  def on_device(*args):
    loss, stats = head.of_outputs(*args)
    return loss[None], stats

  def sharded(
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    outputs: Outputs,
    labels: jax.Array,
    mask: jax.Array,
    extras: Mapping[str, jax.Array] | None = None,
    context: Any = (),
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    of_teacher = mapped(outputs, lambda x: tokens, lambda x: whole)
    # The sum over devices stays outside `shard_map`: inside, its transpose would sum once more.
    losses, stats = jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=(hidden, whole, of_teacher, tokens, tokens, tokens, whole),
      out_specs=(device, tokens),
      axis_names=set(mesh.axis_names) - set(automatic_axes),
      check_vma=False,
    )(
      student_hidden,
      student_unembedding,
      mapped(outputs, lambda x: x),
      labels,
      mask,
      dict(extras or {}),
      context,
    )
    return jnp.sum(losses), stats

  return Head(sharded)
