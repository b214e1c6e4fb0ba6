"""What a run trains, what it only reads, and the one place where the student's parameters join."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from egad_jax.methods.method import State
from egad_jax.training.guard import Guard
from egad_jax.types import Params


class TrainState(NamedTuple):
  """All that a run needs to go on; saved and restored as one.

  Attributes:
    step: batches used, int32 scalar: updates made and skipped.
    trainable: {"student": what is trained of the student, "method": what the method trains beside
      it (a projector)}.
    opt_state: of the optimizer over `trainable`.
    method_state: running distributions and other state of the method.
    guard: skipped steps, and what the next ones are judged by.
  """

  step: jax.Array
  trainable: Params
  opt_state: Any
  method_state: State
  guard: Guard


class Frozen(NamedTuple):
  """What the programs of a run read and never change; it is not saved.

  Attributes:
    teacher: what `Teacher.outputs` reads.
    student: what is not trained of the student; {} when all of it is.
  """

  teacher: Params
  student: Params


def student_params(trainable: Params, frozen_student: Params) -> Params:
  """The student's parameters, as `Model.apply` takes them.

  Nothing else knows how they are split: training a part of the student changes this function and
  the experiment's initial state alone.

  Args:
    trainable: as in `TrainState`.
    frozen_student: as in `Frozen`; {} as long as all of the student is trained.
  """
  return {**trainable["student"], **frozen_student}
