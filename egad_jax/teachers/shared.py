"""A teacher whose outputs of a batch are computed once, for the steps of several students."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from egad_jax import sharding
from egad_jax.data.batches import AnyBatch
from egad_jax.teachers.colocated import ColocatedTeacher
from egad_jax.teachers.outputs import Hidden, Outputs
from egad_jax.teachers.separate import Attached, SeparateTeacher
from egad_jax.teachers.teacher import PlacedTeacher, Teacher
from egad_jax.types import Params


def share(
  teachers: Sequence[Teacher], compiler_options: dict[str, str] | None = None
) -> tuple[Teacher, ...]:
  """Makes one source of outputs of the equal teachers of several students.

  Args:
    teachers: the teacher of each student. They differ at most in the layers that they tap.
    compiler_options: XLA options of the teacher's program; None for the defaults.

  Returns:
    A `Teacher` for each student. All describe the same parameters and attach the same outputs, so
    that whatever `place` of one returns serves the others too.
  """
  first = teachers[0]
  if not isinstance(first, ColocatedTeacher | SeparateTeacher):
    # The outputs of such a teacher are attached already, and it has no taps.
    return (first,) * len(teachers)
  taps_of = [_model(teacher).taps for teacher in teachers]
  tapped = tuple(sorted(set().union(*taps_of)))
  own = dataclasses.replace(_model(first), taps=tapped)
  source: AttachingTeacher | SeparateTeacher
  if isinstance(first, SeparateTeacher):
    source = dataclasses.replace(first, own=own)
  else:
    source = AttachingTeacher(own, compiler_options)
  return tuple(SharedTeacher(source, tuple(map(tapped.index, taps))) for taps in taps_of)


def _model(teacher: Teacher) -> ColocatedTeacher:
  if isinstance(teacher, SeparateTeacher):
    return teacher.own
  assert isinstance(teacher, ColocatedTeacher)
  return teacher


@dataclasses.dataclass(frozen=True)
class AttachingTeacher:
  """A teacher on the student's devices that a program of its own runs; a `Teacher`.

  The students' steps then read the outputs as arguments.

  Attributes:
    own: the teacher's model, parameters and taps.
    compiler_options: XLA options of the teacher's program; None for the defaults.
  """

  own: ColocatedTeacher
  compiler_options: dict[str, str] | None = None

  @property
  def meshes(self) -> tuple[jax.sharding.Mesh, ...]:
    """Empty: the teacher uses no devices but the student's."""
    return ()

  def abstract_params(self) -> Params:
    """Shapes, dtypes and shardings of the whole model's parameters."""
    return self.own.abstract_params()

  def abstract_attached(self, batch: AnyBatch) -> Attached:
    """Describes the hidden states and taps that `attach` adds."""
    shape = (*batch.teacher_side.tokens.shape, self.own.model.config.dim)
    rows = sharding.batch_sharding(self.own.mesh)
    hidden = jax.ShapeDtypeStruct(shape, self.own.dtype, sharding=rows)
    return Attached(hidden, (hidden,) * len(self.own.taps))

  def place(self) -> PlacedAttachingTeacher:
    """Puts the parameters on the devices."""
    return PlacedAttachingTeacher(self)

  def outputs(self, params: Params, batch: AnyBatch, *, with_taps: bool = False) -> Hidden:
    """Returns the outputs attached to the batch; the unembedding is that of `params`."""
    del with_taps
    hidden, taps = batch.attached
    none = jnp.zeros((0, *hidden.shape), hidden.dtype)
    unembedding = self.own.model.unembedding(params)
    return jax.lax.stop_gradient(Hidden(hidden, unembedding, jnp.stack(taps) if taps else none))


class PlacedAttachingTeacher:
  """A `PlacedTeacher` that computes on the student's devices, before the student's step.

  Attributes:
    params: the whole model's parameters, of which a student's step reads the unembedding.
  """

  def __init__(self, teacher: AttachingTeacher):
    """Puts the parameters on their devices; `attach` compiles the model."""
    self.params = teacher.own.place().params

    def outputs(params: Params, batch: AnyBatch, accumulation: int) -> Any:
      def of_micro_batch(micro: AnyBatch) -> Any:
        found = teacher.own.outputs(params, micro, with_taps=True)
        return Attached(found.hidden, () if found.taps is None else tuple(found.taps))

      return sharding.join_micro_batches(
        jax.lax.map(of_micro_batch, sharding.micro_batches(batch, accumulation))
      )

    self._outputs = jax.jit(
      outputs,
      static_argnums=2,
      out_shardings=sharding.batch_sharding(teacher.own.mesh),
      compiler_options=teacher.compiler_options,
    )

  @property
  def model_params(self) -> Params:
    """The parameters of the whole model, which are `params` themselves."""
    return self.params

  def attach(self, batches: Iterable[AnyBatch], accumulation: int = 1) -> Iterator[AnyBatch]:
    """Yields each batch with its outputs; a batch is computed when it is asked for."""
    for batch in batches:
      outputs = self._outputs(self.params, batch.teacher_side, accumulation)
      yield batch._replace(attached=outputs)


@dataclasses.dataclass(frozen=True)
class SharedTeacher:
  """The part of a shared teacher's outputs that one student reads; a `Teacher`.

  Attributes:
    source: the teacher that attaches the outputs, with the taps of all students.
    taps: indices, among the source's taps, of those that this student reads.
  """

  source: AttachingTeacher | SeparateTeacher
  taps: tuple[int, ...]

  @property
  def meshes(self) -> tuple[jax.sharding.Mesh, ...]:
    """Meshes of the devices that the source uses besides the student's."""
    return self.source.meshes

  def abstract_params(self) -> Params:
    """See `Teacher`; the same for all students."""
    return self.source.abstract_params()

  def abstract_attached(self, batch: AnyBatch) -> Attached:
    """See `Teacher`; the same for all students, with the taps of them all."""
    return self.source.abstract_attached(batch)

  def place(self) -> PlacedTeacher:
    """Puts the parameters on the devices, for all students."""
    return self.source.place()

  def outputs(self, params: Params, batch: AnyBatch, *, with_taps: bool = False) -> Outputs:
    """Returns the attached outputs with this student's taps alone."""
    attached = batch.attached
    own = attached._replace(taps=tuple(attached.taps[i] for i in self.taps))
    return self.source.outputs(params, batch._replace(attached=own), with_taps=with_taps)
