"""The state that a run trains, the parameters that it only reads, and how the student's join."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from egad_jax.methods.method import State
from egad_jax.training.guard import Guard
from egad_jax.types import Params


class TrainState(NamedTuple):
  """Everything that a run needs to continue; saved and restored as one.

  Attributes:
    step: int32 scalar, number of batches used: updates made and skipped.
    trainable: {"student": the student's trained parameters, "method": the method's own, such as a
      projector; {} if it has none}.
    opt_state: the optimizer's state over `trainable`.
    method_state: the running distributions and other state of the method.
    guard: counts of skipped steps, and the statistics that the next steps are judged by.
  """

  step: jax.Array
  trainable: Params
  opt_state: Any
  method_state: State
  guard: Guard


class Frozen(NamedTuple):
  """Parameters that the programs of a run read and never change; they are not saved.

  Attributes:
    teacher: the parameters that `Teacher.outputs` reads.
    student: the student's parameters that are not trained; {} if all are trained.
  """

  teacher: Params
  student: Params


def student_params(trainable: Params, frozen_student: Params) -> Params:
  """All of the student's parameters, as `Model.apply` takes them.

  Nothing else knows how they are split: to train only a part of the student, change this function
  and the experiment's initial state.

  Args:
    trainable: `TrainState.trainable`.
    frozen_student: `Frozen.student`; {} if all parameters are trained.
  """
  return {**trainable["student"], **frozen_student}
