"""From the keys of a config to the method it names."""

from __future__ import annotations

import dataclasses
from typing import Any

from egad_jax import losses
from egad_jax.build.values import Config
from egad_jax.errors import InputError
from egad_jax.losses.method import Method


def _options(config: Config, group: str, make: Any) -> Any:
  """The dataclass `make` from the keys of a group that are its fields."""
  names = [field.name for field in dataclasses.fields(make)]
  try:
    return make(**{name: config[group][name] for name in names})
  except ValueError as error:  # Its message names the field.
    raise InputError(f"config.{group}: {error}") from None


def make_method(config: Config) -> Method:
  """The method of a config.

  Raises:
    InputError: a hyper-parameter is out of range.
  """
  make = losses.METHODS[config.method]
  temperature = _options(config, "temperature", losses.Temperature)
  shared = {"divergence": config.loss.divergence, "ce_weight": config.loss.ce_weight}
  shared["half_life"] = float(config.distribution.half_life)
  if config.method == "vanilla_kd":
    return make(**shared, temperature=temperature.base)
  is_off = config.curriculum.kind == "uniform"
  return make(
    **shared,
    curriculum=None if is_off else _options(config, "curriculum", losses.Curriculum),
    temperature=temperature,
    branch=_options(config, "branch", losses.Branch) if config.branch.weight else None,
  )
