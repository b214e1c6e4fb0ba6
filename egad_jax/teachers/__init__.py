"""Teachers: what the student's step reads from a teacher, and where that is computed."""

from __future__ import annotations

from egad_jax.teachers.colocated import ColocatedTeacher
from egad_jax.teachers.separate import SeparateTeacher
from egad_jax.teachers.teacher import Hidden, PlacedTeacher, Teacher

__all__ = ["ColocatedTeacher", "Hidden", "PlacedTeacher", "SeparateTeacher", "Teacher"]
