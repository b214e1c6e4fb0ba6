"""From the keys of a config to where the teacher's outputs come from."""

from __future__ import annotations

from typing import Any

from egad_jax.from_config.validation import compiler_options
from egad_jax.from_config.values import Config
from egad_jax.teachers import ColocatedTeacher, SeparateTeacher, Teacher
from egad_jax.training.experiment import StudentAndTeacher


def make_teacher(config: Config, models: StudentAndTeacher, meshes: tuple[Any, Any]) -> Teacher:
  """The teacher of a config.

  Args:
    config: checked by `validate`.
    models: student and teacher.
    meshes: the student's and the teacher's; one object unless the teacher has its own devices.
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
