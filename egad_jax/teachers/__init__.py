"""Teachers: what the student's step reads from a teacher, and where that is computed."""

from __future__ import annotations

from egad_jax.losses.top_k import TopK
from egad_jax.teachers.colocated import ColocatedTeacher
from egad_jax.teachers.outputs import Hidden, Outputs
from egad_jax.teachers.separate import SeparateTeacher
from egad_jax.teachers.shared import SharedTeacher, share
from egad_jax.teachers.teacher import PlacedTeacher, Teacher

__all__ = [
  "ColocatedTeacher",
  "Hidden",
  "Outputs",
  "PlacedTeacher",
  "SeparateTeacher",
  "SharedTeacher",
  "Teacher",
  "TopK",
  "share",
]
