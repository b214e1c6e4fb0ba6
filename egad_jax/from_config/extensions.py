"""What a user adds to a run from outside the package: an argument of `build`, no table to edit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from egad_jax.data.packing import Rows
from egad_jax.from_config.values import Config
from egad_jax.losses.log_divergences import LogDivergence
from egad_jax.methods.method import Method
from egad_jax.teachers import Teacher
from egad_jax.training.batch_source import BatchSource
from egad_jax.training.experiment import StudentAndTeacher


@dataclasses.dataclass(frozen=True)
class Extensions:
  """Additions to the choices that a config has.

  Attributes:
    methods: what config.method may name besides `METHODS`: name -> (config) -> method.
    divergences: what config.loss.divergence may name besides `DIVERGENCES`: name -> function of
      log-probabilities, see `losses.log_divergences.make_divergence`.
    teacher: (config, models, meshes) -> where the teacher's outputs come from; None for the
      config's own. The meshes are the student's and the teacher's.
    batch_source: (config, rows) -> where the train batches come from; None for the packed rows.
  """

  methods: Mapping[str, Callable[[Config], Method]] = dataclasses.field(default_factory=dict)
  divergences: Mapping[str, LogDivergence] = dataclasses.field(default_factory=dict)
  teacher: Callable[[Config, StudentAndTeacher, tuple[Any, Any]], Teacher] | None = None
  batch_source: Callable[[Config, Rows], BatchSource] | None = None


NO_EXTENSIONS = Extensions()
