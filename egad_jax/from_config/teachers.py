"""Makes the source of the teacher's outputs from a config."""

from __future__ import annotations

import functools
from typing import Any

import jax

from egad_jax.errors import InputError
from egad_jax.from_config.validation import compiler_options
from egad_jax.from_config.values import Config
from egad_jax.methods.method import SpanLoss
from egad_jax.teachers import ColocatedTeacher, Hidden, SeparateTeacher, Teacher
from egad_jax.training.experiment import Experiment, StudentAndTeacher


def make_teacher(config: Config, models: StudentAndTeacher, meshes: tuple[Any, Any]) -> Teacher:
  """The source of the teacher's outputs: a colocated teacher, or one on devices of its own.

  Args:
    config: checked by `validate`.
    models: the models, of which the teacher's functions and parameters are used.
    meshes: the student's mesh and the teacher's; the same object unless the teacher has its own
      devices.
  """
  mesh, teacher_mesh = meshes
  teacher = ColocatedTeacher(
    model=models.teacher,
    mesh=teacher_mesh,
    host_params=models.teacher_params,
    dtype=models.teacher_dtype,
    taps=models.teacher_taps,
    layers_on_host=config.teacher.placement == "host",
    seed=config.seed,
  )
  if teacher_mesh is mesh:
    return teacher
  return SeparateTeacher(teacher, mesh, compiler_options(config) or None)


def check_teacher(experiment: Experiment) -> None:
  """Raises InputError if the method reads what the teacher's outputs do not hold.

  The outputs are described without any computation, for a batch of the experiment.
  """
  method, teacher = experiment.method, experiment.teacher
  needs, remedy = "", ""
  if method.feature_loss is not None:
    needs = "has a feature loss, which reads the outputs of the teacher's layers"
    remedy = "choose a method without one (for egad: --config.branch.weight=0)"
  if isinstance(method.loss, SpanLoss):
    needs = "serves two tokenizers, for which it reads the teacher's hidden states"
    remedy = "choose a method for one tokenizer"
  if not needs:
    return
  outputs = jax.eval_shape(
    functools.partial(teacher.outputs, with_taps=method.feature_loss is not None),
    teacher.abstract_params(),
    experiment.abstract_batch(),
  )
  if not isinstance(outputs, Hidden):
    raise InputError(
      f"config.method ({experiment.method_name}) {needs}, but the teacher gives only a"
      f" {type(outputs).__name__}, its likeliest tokens. Choose a teacher that gives its hidden"
      f" states, or {remedy}."
    )
  taps = 0 if outputs.taps is None else outputs.taps.shape[0]
  wanted = len(experiment.models.teacher_taps)
  if method.feature_loss is not None and taps != wanted:
    raise InputError(
      f"config.method ({experiment.method_name}) has a feature loss, which reads the outputs of"
      f" {wanted} of the teacher's layers, but the teacher gives those of {taps}. Choose a teacher"
      f" that gives them (`Hidden.taps`), or {remedy}."
    )
