"""Makes the source of the teacher's outputs from a config."""

from __future__ import annotations

from typing import Any

from egad_jax.from_config.validation import compiler_options
from egad_jax.from_config.values import Config
from egad_jax.teachers import ColocatedTeacher, SeparateTeacher, Teacher
from egad_jax.training.experiment import StudentAndTeacher


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
