"""From the keys of a config to the method it names."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from egad_jax import losses
from egad_jax.build.values import Config
from egad_jax.errors import InputError
from egad_jax.losses.log_divergences import LOG_DIVERGENCES
from egad_jax.losses.method import Method


def name_values(key: str, text: str) -> dict[str, str]:
  """Parses "name=value,name=value"; InputError naming the config's `key` if it cannot be."""
  pairs = [entry.split("=", 1) for entry in text.split(",") if entry]
  if bad := [pair[0] for pair in pairs if len(pair) != 2 or not pair[0]]:
    raise InputError(f"config.{key} must be name=value,name=value; got {bad[0]!r}.")
  return dict(pairs)


def options(key: str, text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
  """Parses "name=value,name=value" into values of the types of `defaults`.

  Args:
    key: of the config, for messages.
    text: the options.
    defaults: every option there is and its default; None accepts a number.

  Raises:
    InputError: an option is unknown, or of another type.
  """
  values = {}
  for name, word in name_values(key, text).items():
    if name not in defaults:
      known = ", ".join(defaults) or "none"
      raise InputError(f"config.{key}: there is no option {name!r}; the options are {known}.")
    default = defaults[name]
    try:
      value = word if isinstance(default, str) else ast.literal_eval(word.capitalize())
    except (SyntaxError, ValueError):
      value = word
    if isinstance(value, int) and not isinstance(value, bool) and isinstance(default, float | None):
      value = float(value)
    if type(value) is not type(default) and not (default is None and isinstance(value, float)):
      kind = "a number" if default is None else f"{type(default).__name__}, as {default!r} is"
      raise InputError(f"config.{key}: {name} must be {kind}; got {word!r}.")
    values[name] = value
  return values


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _group(config: Config, group: str, make: Any, **fixed: Any) -> Any:
  """The dataclass `make` from the keys of a group that are its fields, but for the `fixed` ones."""
  names = [field.name for field in dataclasses.fields(make) if field.name not in fixed]
  try:
    return make(**{name: config[group][name] for name in names}, **fixed)
  except ValueError as error:  # Its message names the field.
    raise InputError(f"config.{group}: {error}") from None


class _Recipe(NamedTuple):
  """How the maker of a method gets its arguments.

  Attributes:
    arguments: config -> those that are the method's reading of shared groups.
    options: (keyword, dataclass) that config.method_options fills, or the keywords it fills.
  """

  arguments: Callable[[Config], dict[str, Any]]
  options: tuple[str, type] | tuple[str, ...] = ()


def _temperature(config: Config) -> dict[str, Any]:
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


def _adakd(config: Config) -> dict[str, Any]:
  # The paper's place of a difficulty, whatever the config says of entropies.
  return {"temperature": _group(config, "temperature", losses.Temperature, position="median_ratio")}


def _trg(config: Config) -> dict[str, Any]:
  return _temperature(config) | {"hard_fraction": config.branch.hard_fraction}


def _x_token(config: Config) -> dict[str, Any]:
  return {
    "curriculum": _curriculum(config),
    "temperature": _group(config, "temperature", losses.Temperature),
    # The options can be checked before there is a projection.
    "projection": (np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32)),
  }


_RECIPES: dict[str, _Recipe] = {
  "egad": _Recipe(_egad),
  "vanilla_kd": _Recipe(_temperature),
  "adakd": _Recipe(_adakd, ("focus", losses.Focus)),
  "aekt": _Recipe(_temperature, ("explicit_knowledge", losses.ExplicitKnowledge)),
  "ea_kd": _Recipe(_temperature, ("entropy_temperature", "entropy_bound")),
  "se_kd": _Recipe(_temperature, ("fraction",)),
  "taid": _Recipe(_temperature, ("interpolation", losses.Interpolation)),
  "trg": _Recipe(_trg, ("graph", losses.RelationGraph)),
  "x_token": _Recipe(_x_token, ("kind", "chunk_average", "teacher_top_k", "minimum_weight")),
}


def make_method(config: Config, **inputs: Any) -> Method:
  """The method of a config.

  Args:
    config: its keys.
    **inputs: what the method needs besides, made from the data (x_token: `projection`).

  Raises:
    InputError: a hyper-parameter is unknown or out of range.
  """
  make, recipe = losses.METHODS[config.method], _RECIPES[config.method]
  divergence = {
    "divergence": config.loss.divergence,
    "divergence_options": options(
      *("loss.divergence_options", config.loss.divergence_options),
      _keywords(LOG_DIVERGENCES[config.loss.divergence]),
    ),
  }
  shared = {"ce_weight": config.loss.ce_weight, "half_life": float(config.distribution.half_life)}
  if "divergence" in _keywords(make):
    shared |= divergence
  key, text = "method_options", config.method_options
  match recipe.options:
    case (str(name), type() as kind):
      defaults = {field.name: field.default for field in dataclasses.fields(kind)}
      own = lambda: {name: kind(**options(key, text, defaults))}
    case names:
      defaults = {name: _keywords(make)[name] for name in names}
      own = lambda: options(key, text, defaults)
  try:
    return make(**shared | recipe.arguments(config) | own() | inputs)
  except InputError:
    raise
  except ValueError as error:
    raise InputError(f"config.method={config.method}: {error}") from None
