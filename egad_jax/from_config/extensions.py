"""Additions to a run from outside the package, given as an argument of `build`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from egad_jax.data.packed_rows import Rows
from egad_jax.from_config.values import Config
from egad_jax.losses.log_divergences import LogDivergence
from egad_jax.methods.method import Method
from egad_jax.reporting.trackers import Tracker
from egad_jax.teachers import Teacher
from egad_jax.training.batch_source import BatchSource
from egad_jax.training.experiment import StudentAndTeacher


@dataclasses.dataclass(frozen=True)
class Extensions:
  """Additions to what a config can name.

  The config has no keys for their options, which are given in Python when an addition is made, for
  example `{"jeffreys": functools.partial(jeffreys, reverse_weight=0.5)}`.

  Attributes:
    methods: name -> (config) -> method, methods that config.method may name besides `METHODS`.
    divergences: name -> function of log-probabilities, see
      `losses.log_divergences.make_divergence`; config.loss.divergence may name them besides
      `DIVERGENCES`.
    teacher: (config, models, meshes) -> the source of the teacher's outputs, where meshes are
      (student's, teacher's); None for the teacher that the config describes.
    batch_source: (config, rows) -> the source of the train batches; None for the packed rows.
    trackers: name -> function that makes a tracker; config.trackers may name them besides
      tensorboard, wandb and mlflow.
  """

  methods: Mapping[str, Callable[[Config], Method]] = dataclasses.field(default_factory=dict)
  divergences: Mapping[str, LogDivergence] = dataclasses.field(default_factory=dict)
  teacher: Callable[[Config, StudentAndTeacher, tuple[Any, Any]], Teacher] | None = None
  batch_source: Callable[[Config, Rows], BatchSource] | None = None
  trackers: Mapping[str, Callable[[], Tracker]] = dataclasses.field(default_factory=dict)


NO_EXTENSIONS = Extensions()
