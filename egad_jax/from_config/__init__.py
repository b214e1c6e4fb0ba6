"""The only code that reads a config: checks it and turns it into a run's functions and values."""

from __future__ import annotations

from egad_jax.from_config.experiment import build, input_paths, loop_options, plan_run
from egad_jax.from_config.extensions import Extensions
from egad_jax.from_config.methods import make_method
from egad_jax.from_config.models import layer_pairs
from egad_jax.from_config.sweep import build_together, check_shared, check_sweep
from egad_jax.from_config.validation import compiler_options, validate
from egad_jax.from_config.values import Config, plain

__all__ = [
  "Config",
  "Extensions",
  "build",
  "build_together",
  "check_shared",
  "check_sweep",
  "compiler_options",
  "input_paths",
  "layer_pairs",
  "loop_options",
  "make_method",
  "plain",
  "plan_run",
  "validate",
]
