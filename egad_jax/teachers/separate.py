"""A teacher on its own devices, which works on the next batches while the student trains."""

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
from egad_jax.teachers.outputs import Hidden
from egad_jax.types import Params

# Number of batches that the teacher runs ahead of the student. One would do if both always took the
# same time; each costs the student's devices the memory of a batch of hidden states.
AHEAD = 2


class Attached(NamedTuple):
  """What the teacher computed for a batch; every array is sharded over the batch axis.

  Attributes:
    hidden: last hidden states, [batch, seq, dim], as in `Hidden`.
    taps: residual streams at the tapped layers, each [batch, seq, dim]; () without taps.
  """

  hidden: Array
  taps: tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class SeparateTeacher:
  """A teacher on a mesh of its own in the student's process; a `Teacher`.

  Attributes:
    own: the teacher's model, parameters and own mesh.
    student_mesh: the student's devices, to which the outputs are moved.
    compiler_options: XLA options of the teacher's program; None for the defaults.
  """

  own: ColocatedTeacher
  student_mesh: jax.sharding.Mesh
  compiler_options: dict[str, str] | None = None

  @property
  def meshes(self) -> tuple[jax.sharding.Mesh, ...]:
    """The teacher's own mesh."""
    return (self.own.mesh,)

  def abstract_params(self) -> Params:
    """Describes {"unembedding": [vocab, dim]} on the student's devices."""
    unembedding = self.own.model.unembedding
    shape = unembedding(self.own.abstract_params())
    axes = unembedding(self.own.model.logical_axes())
    placed = sharding.parameter_shardings(self.student_mesh, axes, shape)
    return {"unembedding": jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=placed)}

  def abstract_attached(self, batch: AnyBatch) -> Attached:
    """Describes the hidden states and taps that `attach` adds, on the student's devices."""
    shape = (*batch.teacher_side.tokens.shape, self.own.model.config.dim)
    rows = sharding.batch_sharding(self.student_mesh)
    hidden = jax.ShapeDtypeStruct(shape, self.own.dtype, sharding=rows)
    return Attached(hidden, (hidden,) * len(self.own.taps))

  def place(self) -> PlacedSeparateTeacher:
    """Puts the parameters on the teacher's mesh and a copy of the unembedding on the student's."""
    return PlacedSeparateTeacher(self)

  def outputs(self, params: Params, batch: AnyBatch, *, with_taps: bool = False) -> Hidden:
    """Returns the outputs attached to the batch, with the unembedding from `params`."""
    del with_taps
    hidden, taps = batch.attached
    none = jnp.zeros((0, *hidden.shape), hidden.dtype)
    outputs = Hidden(hidden, params["unembedding"], jnp.stack(taps) if taps else none)
    return jax.lax.stop_gradient(outputs)


class PlacedSeparateTeacher:
  """A `PlacedTeacher` that computes on its own devices, ahead of the student.

  Attributes:
    params: {"unembedding": [vocab, dim]}, on the student's devices.
    model_params: the parameters of the whole model, on the teacher's devices.
  """

  def __init__(self, teacher: SeparateTeacher):
    """Puts the parameters on their devices; `attach` compiles the model."""
    self._mesh, self._student_mesh = teacher.own.mesh, teacher.student_mesh
    self.model_params = teacher.own.place().params
    placed = teacher.abstract_params()["unembedding"].sharding
    unembedding = teacher.own.model.unembedding(self.model_params)
    self.params = {"unembedding": jax.device_put(unembedding, placed)}

    def outputs(params: Params, batch: AnyBatch, accumulation: int) -> Any:
      def of_micro_batch(micro: AnyBatch) -> Any:
        found = teacher.own.outputs(params, micro, with_taps=True)
        return found.hidden, () if found.taps is None else tuple(found.taps)

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
    """Yields each batch with its outputs; runs at most `AHEAD` batches ahead of the consumer."""
    under_way: collections.deque[AnyBatch] = collections.deque()
    for batch in batches:
      under_way.append(self._attached(batch, accumulation))
      if len(under_way) > AHEAD:
        yield under_way.popleft()
    yield from under_way

  def _attached(self, batch: AnyBatch, accumulation: int) -> AnyBatch:
    """Starts the teacher on a batch and the transfer of its outputs to the student's devices."""
    side = jax.tree.map(lambda x: sharding.move_rows(x, self._mesh), batch.teacher_side)
    outputs = self._outputs(self.model_params, side, accumulation)
    moved = jax.tree.map(lambda x: sharding.move_rows(x, self._student_mesh), outputs)
    return batch._replace(attached=Attached(*moved))
