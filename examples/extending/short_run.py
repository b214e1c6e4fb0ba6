"""A few steps of `configs/tiny.py` with something from outside the package."""

from __future__ import annotations

import tempfile
from typing import Any

from configs import tiny
from egad_jax import from_config
from egad_jax.durability.workdir import Workdir
from egad_jax.training import loop


def short_run(extensions: from_config.Extensions, **changes: Any) -> dict[str, Any]:
  """Trains the tiny config for four steps; returns the summary.

  Args:
    extensions: what the config may name, or use, besides what the package knows.
    **changes: keys of the config, `a__b` for a.b.
  """
  config = tiny.get_config()
  defaults = {"steps": 4, "optimizer__warmup_steps": 0, "eval__sample_tokens": 0, "eval__rows": 8}
  for key, value in (defaults | changes).items():
    config.update_from_flattened_dict({key.replace("__", "."): value})
  with tempfile.TemporaryDirectory() as directory, Workdir(directory) as workdir:
    experiment = from_config.build(config, directory, extensions=extensions)
    workdir.store_config(from_config.plain(config))
    return loop.train(experiment, from_config.loop_options(config, extensions), workdir)


def show(summary: dict[str, Any]) -> None:
  """Prints what the training changed."""
  before, after = summary["student_before"], summary["student_after"]
  print(f"{summary['method']}: forward KL {before['forward_kl']:.4f} -> {after['forward_kl']:.4f}")
