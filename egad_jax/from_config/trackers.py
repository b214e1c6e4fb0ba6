"""The trackers that config.trackers names."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

from egad_jax.errors import InputError
from egad_jax.from_config.extensions import NO_EXTENSIONS, Extensions
from egad_jax.from_config.values import Config
from egad_jax.reporting.events import TensorBoard
from egad_jax.reporting.mlflow_tracker import MlflowTracker
from egad_jax.reporting.trackers import Tracker
from egad_jax.reporting.wandb_tracker import WandbTracker

TRACKERS: dict[str, Callable[[], Tracker]] = {
  "tensorboard": TensorBoard,
  "wandb": WandbTracker,
  "mlflow": MlflowTracker,
}
# Packages that this project does not require; a tracker imports its own when it starts.
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


def check_trackers(config: Config, extensions: Extensions = NO_EXTENSIONS) -> None:
  """Checks the names in config.trackers.

  Raises:
    InputError: a name is unknown, or is there twice.
  """
  names, choices = config.trackers, (*TRACKERS, *extensions.trackers)
  for name in names:
    if name not in choices:
      raise InputError(
        f"config.trackers must be a tuple of names among {', '.join(choices)}, such as "
        f"('tensorboard', 'wandb'); got {tuple(names)!r}."
      )
  if len(set(names)) < len(names):
    raise InputError(f"config.trackers must have each name once; got {tuple(names)!r}.")


def make_trackers(
  config: Config, extensions: Extensions = NO_EXTENSIONS
) -> dict[str, Callable[[], Tracker]]:
  """The makers of the trackers that config.trackers names, by name; nothing is imported yet.

  Raises:
    InputError: a name is unknown, or the package of a tracker is not installed.
  """
  check_trackers(config, extensions)
  known = {**TRACKERS, **extensions.trackers}
  for name in config.trackers:
    package = None if name in extensions.trackers else _PACKAGES.get(name)
    if package and not _is_installed(package):
      raise InputError(
        f"config.trackers names {name}, and the Python package {package} is not installed for "
        f"{sys.executable}. Install it with `{sys.executable} -m pip install {package}`, or leave "
        f"{name} out of config.trackers."
      )
  return {name: known[name] for name in config.trackers}


def _is_installed(package: str) -> bool:
  if sys.modules.get(package) is not None:
    return True
  # A directory of that name without code, such as what wandb writes to, has no origin.
  spec = importlib.util.find_spec(package)
  return spec is not None and spec.origin is not None
