"""Makes the distillation method that a config names, with the hyper-parameters it gives."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from egad_jax import losses, methods
from egad_jax.errors import InputError
from egad_jax.from_config.extensions import NO_EXTENSIONS, Extensions
from egad_jax.from_config.values import Config
from egad_jax.losses.log_divergences import make_divergence
from egad_jax.losses.temperature import check_no_gradient, check_temperature
from egad_jax.methods.method import Method


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
  """Turns a ValueError inside the context into an InputError that names the config's `key`."""
  try:
    yield
  except ValueError as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f"config.{key}: {error}") from None


def _group(config: Config, group: str, make: Any, **fixed: Any) -> Any:
  """Makes a dataclass from the keys of a config's group; `fixed` gives fields other values."""
  names = [field.name for field in dataclasses.fields(make) if field.name not in fixed]
  with _named(group):
    return make(**{name: config[group][name] for name in names}, **fixed)


class Recipe(NamedTuple):
  """How the arguments of a method's maker are read from a config.

  Attributes:
    arguments: (config) -> keyword arguments from the groups that methods share; they win over the
      options.
    reads: the groups and keys, of curriculum, temperature and branch, that the method's loss
      depends on.
    made: (keyword of the maker, dataclass of its value) if the options of config.method_options are
      fields of that dataclass; None if they are keywords of the maker itself.
  """

  arguments: Callable[[Config], dict[str, Any]]
  reads: tuple[str, ...]
  made: tuple[str, type] | None = None


def _temperature(config: Config) -> dict[str, Any]:
  with _named("temperature"):
    check_temperature("base", config.temperature.base)
  return {"temperature": config.temperature.base}


def _egad(config: Config) -> dict[str, Any]:
  return {
    "curriculum": _curriculum(config),
    "temperature": _group(config, "temperature", losses.Temperature),
    "branch": _group(config, "branch", losses.Branch) if config.branch.weight else None,
  }


def _curriculum(config: Config) -> losses.Curriculum | None:
  if config.curriculum.kind == "uniform":
    return None
  return _group(config, "curriculum", losses.Curriculum)


def _temperature_without_gradient(config: Config, **fixed: Any) -> losses.Temperature:
  temperature = _group(config, "temperature", losses.Temperature, **fixed)
  with _named("temperature"):
    check_no_gradient(temperature, config.method)
  return temperature


def _adakd(config: Config) -> dict[str, Any]:
  if config.temperature.kind == "fixed":
    raise InputError(
      'config.temperature.kind ("fixed") must be "adaptive" or "mean" for method adakd, whose '
      "temperature follows each token's difficulty. Give --config.temperature.kind=adaptive; with "
      "--config.temperature.strength=0 as well, the temperature is config.temperature.base for all."
    )
  # AdaKD's paper defines the position of a difficulty by the median, so the config's is ignored.
  return {"temperature": _temperature_without_gradient(config, position="median_ratio")}


def _trg(config: Config) -> dict[str, Any]:
  return _temperature(config) | {"hard_fraction": config.branch.hard_fraction}


def _x_token(config: Config) -> dict[str, Any]:
  return {
    "curriculum": _curriculum(config),
    "temperature": _temperature_without_gradient(config),
    "teacher_top_k": config.method_options.x_token.teacher_top_k or None,
    # A stand-in, so that `validate` can check the options before there is a projection.
    "projection": (np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32)),
  }


_MECHANISMS = ("curriculum", "temperature", "branch")
_BASE = ("temperature.base",)
_ALL_BUT_POSITION = tuple(
  f"temperature.{field.name}"
  for field in dataclasses.fields(losses.Temperature)
  if field.name != "position"
)

RECIPES: dict[str, Recipe] = {
  "egad": Recipe(_egad, _MECHANISMS),
  "vanilla_kd": Recipe(_temperature, _BASE),
  "adakd": Recipe(_adakd, _ALL_BUT_POSITION, ("focus", losses.Focus)),
  "aekt": Recipe(_temperature, _BASE, ("explicit_knowledge", losses.ExplicitKnowledge)),
  "ea_kd": Recipe(_temperature, _BASE),
  "se_kd": Recipe(_temperature, _BASE),
  "taid": Recipe(_temperature, _BASE, ("interpolation", losses.Interpolation)),
  "trg": Recipe(
    _trg, (*_BASE, "branch.hard_fraction", "branch.layers"), ("graph", losses.RelationGraph)
  ),
  "x_token": Recipe(_x_token, ("curriculum", "temperature")),
}


def make_method(config: Config, extensions: Extensions = NO_EXTENSIONS, **inputs: Any) -> Method:
  """The distillation method that a config names.

  Args:
    config: all keys of `configs.default`, checked by `validate`.
    extensions: methods and divergences from outside the package.
    **inputs: further arguments of the method's maker that are made from the data: `projection` for
      x_token, none for other methods.

  Raises:
    InputError: a hyper-parameter is unknown or out of range.
  """
  if config.method in extensions.methods:
    with _named("method"):
      return extensions.methods[config.method](config)
  make, recipe = methods.METHODS[config.method], RECIPES[config.method]
  arguments: dict[str, Any] = {"ce_weight": config.loss.ce_weight}
  arguments["half_life"] = float(config.distribution.half_life)
  if "divergence" in defaults_of(make):
    arguments |= _divergence(config, extensions)
  group = config.method_options.get(config.method)
  with _named(f"method_options.{config.method}" if group else "method"):
    options = dict(group or {})
    if recipe.made:
      keyword, kind = recipe.made
      options = {keyword: kind(**options)}
    return make(**arguments | options | recipe.arguments(config) | inputs)


def _divergence(config: Config, extensions: Extensions) -> dict[str, Any]:
  name = config.loss.divergence
  if name in extensions.divergences:
    divergence, options, key = extensions.divergences[name], {}, "loss.divergence"
  else:
    divergence, options = name, dict(config.loss.divergence_options.get(name, {}))
    key = f"loss.divergence_options.{name}"
  with _named(key):
    make_divergence(divergence, options)
  return {"divergence": divergence, "divergence_options": options}


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
  """The parameters of a function, or the fields of a dataclass, with their defaults."""
  return {p.name: p.default for p in inspect.signature(function).parameters.values()}
