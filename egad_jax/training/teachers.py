"""What a student step takes from its teacher, and where that comes from."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egad_jax import sharding
from egad_jax.data.batches import AnyBatch, Array, Batch, PairedBatch
from egad_jax.models.model import Model
from egad_jax.training.micro_batches import joined, micro_batches

Params = Any
# Batches that a teacher on devices of its own is ahead of its student: one would do if both always
# took the same time. Each costs the student's devices a batch of hidden states.
AHEAD = 2


class Hidden(NamedTuple):
  """A teacher seen through its last hidden states: exact, and small next to its logits.

  Attributes:
    hidden: [batch, seq, dim] after the final norm, in the teacher's compute dtype.
    unembedding: [vocab, dim].
    taps: [num_taps, batch, seq, dim], the residual stream at the layers asked for.
  """

  hidden: jax.Array
  unembedding: jax.Array
  taps: jax.Array


class Taught(NamedTuple):
  """A batch with what a teacher on devices of its own made of it; every field is split by rows.

  Attributes:
    rows: the batch.
    hidden: [batch, seq, dim], as in `Hidden`.
    taps: each [batch, seq, dim].
  """

  rows: AnyBatch
  hidden: Array
  taps: tuple[Array, ...]


TeacherOutputs = Hidden
TeacherSource = Callable[[Params, Batch], TeacherOutputs]


def colocated_teacher(model: Model, *, taps: tuple[int, ...] = ()) -> TeacherSource:
  """The teacher on the student's devices, computed in the student's step.

  Args:
    model: the teacher.
    taps: layers whose output the feature branch compares; see `Model.apply`.

  Returns:
    `(teacher_params, batch) -> Hidden`, without gradient.
  """

  def outputs(teacher_params: Params, batch: Batch) -> Hidden:
    hidden, tapped = model.apply(
      teacher_params, batch.tokens, batch.positions, batch.segment_ids, taps=taps
    )
    return jax.lax.stop_gradient(Hidden(hidden, model.unembedding(teacher_params), tapped))

  return outputs


def taught(make: Callable[[TeacherSource], Callable[..., Any]]) -> Callable[..., Any]:
  """What `make` makes of a teacher, for a teacher whose outputs come with the batch.

  Args:
    make: from a source to a function `(params, teacher_params, batch, …)` that calls it once.

  Returns:
    The same function of `Taught` batches; its `teacher_params` are {"unembedding": [vocab, dim]}.
  """

  def function(params: Params, teacher_params: Params, batch: Taught, *rest: Any) -> Any:
    none = jnp.zeros((0, *batch.hidden.shape), batch.hidden.dtype)
    taps = jnp.stack(batch.taps) if batch.taps else none
    outputs = Hidden(batch.hidden, teacher_params["unembedding"], taps)
    return make(lambda *_: jax.lax.stop_gradient(outputs))(
      params, teacher_params, batch.rows, *rest
    )

  return function


class SeparateTeacher:
  """A teacher on a mesh of its own, which works on the next batches while the student trains."""

  def __init__(
    self,
    params: Params,
    source: TeacherSource,
    *,
    mesh: jax.sharding.Mesh,
    student_mesh: jax.sharding.Mesh,
    compiler_options: dict[str, str] | None = None,
  ) -> None:
    """Compiles nothing yet.

    Args:
      params: the teacher's, on `mesh`.
      source: `colocated_teacher` of a model on `mesh`.
      mesh: the teacher's devices.
      student_mesh: the student's, of the same process and all others.
      compiler_options: for the teacher's program.
    """
    self._params, self._mesh, self._student_mesh = params, mesh, student_mesh

    def teacher_outputs(params: Params, batch: Batch, accumulation: int) -> Any:
      def of_micro_batch(micro: Batch) -> Any:
        outputs = source(params, micro)
        return outputs.hidden, tuple(outputs.taps)

      return joined(jax.lax.map(of_micro_batch, micro_batches(batch, accumulation)))

    self._program = jax.jit(
      teacher_outputs,
      static_argnums=2,
      out_shardings=sharding.batch_sharding(mesh),
      compiler_options=compiler_options,
    )

  def teach(self, rows: AnyBatch, accumulation: int = 1) -> Taught:
    """A batch with the teacher's outputs, under way to the student's devices.

    Args:
      rows: on the student's devices.
      accumulation: parts that the teacher takes the batch in, one after the other.
    """
    batch = rows.teacher if isinstance(rows, PairedBatch) else rows
    batch = jax.tree.map(lambda x: sharding.move_rows(x, self._mesh), batch)
    outputs = self._program(self._params, batch, accumulation)
    return Taught(rows, *jax.tree.map(lambda x: sharding.move_rows(x, self._student_mesh), outputs))

  def ahead(self, batches: Iterable[AnyBatch], accumulation: int = 1) -> Iterator[Taught]:
    """Yields each batch taught; the teacher is at most `AHEAD` batches ahead of what is taken."""
    under_way: collections.deque[Taught] = collections.deque()
    for batch in batches:
      under_way.append(self.teach(batch, accumulation))
      if len(under_way) > AHEAD:
        yield under_way.popleft()
    yield from under_way
