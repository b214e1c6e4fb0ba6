"""What a student step takes from its teacher, and where that comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from egad_jax.data.batches import Batch
from egad_jax.models.model import Model

Params = Any


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
