"""Teachers: what a student's step takes from one, and the places that it can come from."""

from __future__ import annotations

from egad_jax.teachers.colocated import ColocatedTeacher
from egad_jax.teachers.separate import SeparateTeacher
from egad_jax.teachers.teacher import Hidden, PlacedTeacher, Teacher

__all__ = ["ColocatedTeacher", "Hidden", "PlacedTeacher", "SeparateTeacher", "Teacher"]
