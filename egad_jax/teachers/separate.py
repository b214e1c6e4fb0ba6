"""A teacher on devices of its own, which works on the next batches while the student trains."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax import sharding
from egad_jax.data.batches import AnyBatch, Array
from egad_jax.teachers.colocated import ColocatedTeacher
from egad_jax.teachers.teacher import Hidden
from egad_jax.types import Params

# Batches that the teacher is ahead of its student: one would do if both always took the same time.
# Each costs the student's devices a batch of hidden states.
AHEAD = 2


class Attached(NamedTuple):
  """What the teacher computed for a batch; every field is split by rows.

  Attributes:
    hidden: [batch, seq, dim], as in `Hidden`.
    taps: each [batch, seq, dim].
  """

  hidden: Array
  taps: tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class SeparateTeacher:
  """A teacher on a mesh of its own in the student's process; a `Teacher`.

  Attributes:
    own: the teacher on its own mesh.
    student_mesh: the student's devices.
    compiler_options: for the teacher's program; None for none.
  """

  own: ColocatedTeacher
  student_mesh: jax.sharding.Mesh
  compiler_options: dict[str, str] | None = None

  @property
  def meshes(self) -> tuple[jax.sharding.Mesh, ...]:
    """The teacher's own."""
    return (self.own.mesh,)

  def abstract_params(self) -> Params:
    """The unembedding on the student's devices: {"unembedding": [vocab, dim]}."""
    unembedding = self.own.model.unembedding
    shape = unembedding(self.own.abstract_params())
    axes = unembedding(self.own.model.logical_axes())
    placed = sharding.parameter_shardings(self.student_mesh, axes, shape)
    return {"unembedding": jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=placed)}

  def abstract_attached(self, batch: AnyBatch) -> Attached:
    """Hidden states and taps of the batch."""
    shape = (*batch.teacher_side.tokens.shape, self.own.model.config.dim)
    rows = sharding.batch_sharding(self.student_mesh)
    hidden = jax.ShapeDtypeStruct(shape, self.own.dtype, sharding=rows)
    return Attached(hidden, (hidden,) * len(self.own.taps))

  def place(self) -> PlacedSeparateTeacher:
    """Puts the parameters on the teacher's mesh, and its unembedding on the student's too."""
    return PlacedSeparateTeacher(self)

  def outputs(self, params: Params, batch: AnyBatch, *, with_taps: bool = False) -> Hidden:
    """What came with the batch."""
    del with_taps
    hidden, taps = batch.attached
    none = jnp.zeros((0, *hidden.shape), hidden.dtype)
    outputs = Hidden(hidden, params["unembedding"], jnp.stack(taps) if taps else none)
    return jax.lax.stop_gradient(outputs)


class PlacedSeparateTeacher:
  """A `PlacedTeacher` that computes on its own devices, ahead of the student.

  Attributes:
    params: {"unembedding": [vocab, dim]}, on the student's devices.
    model_params: the whole model's, on the teacher's.
  """

  def __init__(self, teacher: SeparateTeacher):
    """Places the parameters; compiles nothing yet."""
    self._mesh, self._student_mesh = teacher.own.mesh, teacher.student_mesh
    self.model_params = teacher.own.place().params
    placed = teacher.abstract_params()["unembedding"].sharding
    unembedding = teacher.own.model.unembedding(self.model_params)
    self.params = {"unembedding": jax.device_put(unembedding, placed)}

    def outputs(params: Params, batch: AnyBatch, accumulation: int) -> Any:
      def of_micro_batch(micro: AnyBatch) -> Any:
        found = teacher.own.outputs(params, micro, with_taps=True)
        return found.hidden, tuple(found.taps)

      return sharding.join_micro_batches(
        jax.lax.map(of_micro_batch, sharding.micro_batches(batch, accumulation))
      )

    self._outputs = jax.jit(
      outputs,
      static_argnums=2,
      out_shardings=sharding.batch_sharding(self._mesh),
      compiler_options=teacher.compiler_options,
    )

  def attach(self, batches: Iterable[AnyBatch], accumulation: int = 1) -> Iterator[AnyBatch]:
    """Yields each batch with its outputs; at most `AHEAD` batches ahead of what is taken."""
    under_way: collections.deque[AnyBatch] = collections.deque()
    for batch in batches:
      under_way.append(self._attached(batch, accumulation))
      if len(under_way) > AHEAD:
        yield under_way.popleft()
    yield from under_way

  def _attached(self, batch: AnyBatch, accumulation: int) -> AnyBatch:
    """The batch with the teacher's outputs, under way to the student's devices."""
    side = jax.tree.map(lambda x: sharding.move_rows(x, self._mesh), batch.teacher_side)
    outputs = self._outputs(self.model_params, side, accumulation)
    moved = jax.tree.map(lambda x: sharding.move_rows(x, self._student_mesh), outputs)
    return batch._replace(attached=Attached(*moved))
