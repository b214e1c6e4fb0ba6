"""Makes the distillation method that a config names, with the hyper-parameters it gives."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from egad_jax import losses, methods
from egad_jax.errors import InputError
from egad_jax.from_config.extensions import NO_EXTENSIONS, Extensions
from egad_jax.from_config.values import Config
from egad_jax.losses.log_divergences import LOG_DIVERGENCES, make_divergence
from egad_jax.losses.temperature import check_temperature
from egad_jax.methods.method import Method


def name_values(key: str, text: str) -> dict[str, str]:
  """Parses "name=value,name=value" into {name: value}; "" gives {}.

  Args:
    key: key of the config that holds the text, for messages.
    text: the text to parse.

  Raises:
    InputError: the text has another form, or gives a name twice.
  """
  values: dict[str, str] = {}
  for entry in text.split(",") if text.strip() else ():
    name, separator, value = (part.strip() for part in entry.partition("="))
    if not (name and separator):
      raise InputError(f"config.{key} must be name=value,name=value; got {entry!r}.")
    if name in values:
      raise InputError(f"config.{key}: {name} is given twice.")
    values[name] = value
  return values


class Option(NamedTuple):
  """One option of a method or divergence: its default, and whether None is allowed."""

  default: Any
  optional: bool


def options(key: str, text: str, known: Mapping[str, Option]) -> dict[str, Any]:
  """Parses "name=value,name=value" into values of the types of the defaults.

  Args:
    key: key of the config that holds the text, for messages.
    text: the text to parse; "" gives {}.
    known: all options by name; an option whose default is None takes a number.

  Raises:
    InputError: an option is unknown, or of another type.
  """
  values = {}
  for name, word in name_values(key, text).items():
    if name not in known:
      raise InputError(
        f"config.{key}: there is no option {name!r}; the options are {', '.join(known) or 'none'}."
      )
    default, optional = known[name]
    kind = float if default is None else type(default)
    try:
      value = word if kind is str else ast.literal_eval(word.capitalize())
    except (SyntaxError, ValueError):
      value = word
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind and not (optional and value is None):
      expected = "true or false" if kind is bool else f"a value like {default!r}"
      expected = "a number" if default is None else expected
      raise InputError(f"config.{key}: {name} must be {expected}; got {word!r}.")
    values[name] = value
  return values


def _keywords(function: Callable[..., Any]) -> dict[str, Option]:
  parameters = inspect.signature(function).parameters.values()
  return {
    p.name: Option(p.default, "None" in str(p.annotation))
    for p in parameters
    if p.kind is inspect.Parameter.KEYWORD_ONLY
  }


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


class _Recipe(NamedTuple):
  """How the arguments of a method's maker are read from a config.

  Attributes:
    arguments: (config) -> keyword arguments from the groups that methods share.
    options: what config.method_options fills: (keyword, dataclass of its value), or a tuple of
      keywords; () if the method has no options.
  """

  arguments: Callable[[Config], dict[str, Any]]
  options: tuple[str, type] | tuple[str, ...] = ()


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


def _adakd(config: Config) -> dict[str, Any]:
  if config.temperature.kind == "fixed":
    raise InputError(
      'config.temperature.kind ("fixed") must be "adaptive" or "mean" for method adakd, whose '
      "temperature follows each token's difficulty. Give --config.temperature.kind=adaptive; with "
      "--config.temperature.strength=0 as well, the temperature is config.temperature.base for all."
    )
  # AdaKD's paper defines the position of a difficulty by the median, so the config's is ignored.
  return {"temperature": _group(config, "temperature", losses.Temperature, position="median_ratio")}


def _trg(config: Config) -> dict[str, Any]:
  return _temperature(config) | {"hard_fraction": config.branch.hard_fraction}


def _x_token(config: Config) -> dict[str, Any]:
  return {
    "curriculum": _curriculum(config),
    "temperature": _group(config, "temperature", losses.Temperature),
    # A stand-in, so that `validate` can check the options before there is a projection.
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
  "x_token": _Recipe(_x_token, ("kind", "span_average", "teacher_top_k", "minimum_weight")),
}


def make_method(config: Config, extensions: Extensions = NO_EXTENSIONS, **inputs: Any) -> Method:
  """The distillation method that a config names.

  Args:
    config: the config.
    extensions: methods and divergences from outside the package.
    **inputs: further arguments of the method's maker that are made from the data: `projection` for
      x_token, none for other methods.

  Raises:
    InputError: a hyper-parameter is unknown or out of range.
  """
  if config.method in extensions.methods:
    with _named("method"):
      return extensions.methods[config.method](config)
  make, recipe = methods.METHODS[config.method], _RECIPES[config.method]
  arguments = {"ce_weight": config.loss.ce_weight, **recipe.arguments(config)}
  arguments["half_life"] = float(config.distribution.half_life)
  keywords = _keywords(make)
  if "divergence" in keywords:
    arguments |= _divergence(config, extensions)
  with _named("method_options"):
    match recipe.options:
      case (str(name), type() as kind):
        fields = {
          f.name: Option(f.default, "None" in str(f.type)) for f in dataclasses.fields(kind)
        }
        arguments[name] = kind(**options("method_options", config.method_options, fields))
      case names:
        known = {name: keywords[name] for name in names}
        arguments |= options("method_options", config.method_options, known)
    return make(**arguments | inputs)


def _divergence(config: Config, extensions: Extensions) -> dict[str, Any]:
  name, key = config.loss.divergence, "loss.divergence_options"
  own = extensions.divergences.get(name)
  with _named(key):
    keywords = _keywords(LOG_DIVERGENCES[name] if own is None else own)
    chosen = options(key, config.loss.divergence_options, keywords)
    divergence = name if own is None else own
    make_divergence(divergence, chosen)
  return {"divergence": divergence, "divergence_options": chosen}
