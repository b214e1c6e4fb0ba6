"""Configs out of Python files, presets by name, and the configs that runs stored: each checked."""

from __future__ import annotations

import difflib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
import yaml
from etils import epath

from configs import default
from egad_jax.errors import InputError

PRESETS = pathlib.Path(default.__file__).parent
# Keys whose value is a name, or a tuple of names.
_SEVERAL = ("data.source", "data.held_out_source")
# What is no preset: a config that lacks its teacher, and the package's own file.
_NO_PRESETS = ("default", "__init__")


def presets() -> list[str]:
  """The names of the presets."""
  return sorted(path.stem for path in PRESETS.glob("*.py") if path.stem not in _NO_PRESETS)


def find(name: str) -> pathlib.Path:
  """The file that `--config=name` means: a path, or a preset as NAME, NAME.py or configs/NAME.py.

  Raises:
    InputError: there is no such file.
  """
  path = pathlib.Path(name).expanduser()
  if path.is_file():
    return path
  preset = PRESETS / f"{path.name.removesuffix('.py')}.py"
  if str(path.parent) in (".", "configs") and preset.is_file() and path.stem != "__init__":
    return preset
  close = difflib.get_close_matches(path.name.removesuffix(".py"), presets(), n=1)
  meant = f" Did you mean {close[0]}?" if close else ""
  problem = "is a directory" if name and path.is_dir() else "no such file"
  raise InputError(
    f"--config cannot be read: {name}: {problem}.{meant} Give a Python file that defines "
    f"get_config(), or a preset: {', '.join(presets())}."
  )


def load(name: str) -> ml_collections.ConfigDict:
  """The config of a file, locked: what its `get_config()` returns, or the values in .yaml or .json.

  Args:
    name: see `find`; .yaml as `--print_config` prints it, .json as a workdir holds it.

  Raises:
    InputError: there is no such file, it raises something, or what it returns is no config.
  """
  path = find(name)
  values = _values(path) if path.suffix in (".yaml", ".yml", ".json") else _returned(path).to_dict()
  return checked(str(path), values)


def as_yaml(config: ml_collections.ConfigDict) -> str:
  """A config as text that `load` reads from a .yaml file."""
  plain = json.loads(json.dumps(config.to_dict()))  # YAML has no tuples.
  return yaml.safe_dump(plain, allow_unicode=True, width=100).rstrip()


def _values(path: pathlib.Path) -> dict[str, Any]:
  try:
    text = path.read_text(encoding="utf-8")
    values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
  except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
    words = " ".join(str(error).split())
    raise InputError(f"--config cannot be read: {path}: {words}") from error
  if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
    raise InputError(
      f"--config {path} must hold the keys of a config, as --print_config prints it."
    )
  return values


def _returned(path: pathlib.Path) -> ml_collections.ConfigDict:
  """What the `get_config()` of a Python file returns."""
  # Not by a finder: a user's file may have any name. No bytecode: the file may change within the
  # second, and its directory is the user's.
  loader = importlib.machinery.SourceFileLoader("_config_file", os.fspath(path))
  spec = importlib.util.spec_from_file_location("_config_file", path, loader=loader)
  assert spec is not None
  module = importlib.util.module_from_spec(spec)
  writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
  try:
    loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
      raise InputError(
        f"--config {path} must define get_config(), a function without arguments that returns a "
        "ConfigDict; see configs/tiny.py."
      )
    config = get_config()
  except InputError:
    raise
  # A file may also call exit().
  except (Exception, SystemExit) as error:
    raise InputError(f"--config cannot be read: {_where(error, path)}: {_what(error)}") from error
  finally:
    sys.dont_write_bytecode = writes_bytecode
  if not isinstance(config, ml_collections.ConfigDict):
    forgotten = " Does it end with `return config`?" if config is None else ""
    raise InputError(
      f"--config {path}: get_config() must return a ConfigDict, as configs/tiny.py does; it "
      f"returned {'None' if config is None else f'a {type(config).__name__}'}.{forgotten}"
    )
  return config


def _where(error: BaseException, path: pathlib.Path) -> str:
  """The file and line to look at: the last line of the config that was at work."""
  if isinstance(error, SyntaxError) and error.filename:
    return f"{error.filename}, line {error.lineno}"
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == os.fspath(path)]
  return f"{path}, line {lines[-1]}" if lines else str(path)


def _what(error: BaseException) -> str:
  if isinstance(error, SyntaxError):
    return f"invalid syntax: {error.msg}" if "invalid syntax" not in error.msg else error.msg
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = reason(error)
  # ConfigDict's own words for a key or a type name the key already.
  known = isinstance(error, AttributeError | KeyError | TypeError) and "field" in text
  return text if known else f"{type(error).__name__}: {text}"


def reason(error: BaseException) -> str:
  """The words of an error, without what Python and ml_collections wrap them in."""
  # The str() of a KeyError is the repr of its message, and ml_collections wraps one in another.
  text: object = error
  while isinstance(text, BaseException) and text.args:
    text = text.args[-1] if isinstance(text, OSError) and len(text.args) > 1 else text.args[0]
  # It also quotes the whole config.
  return re.sub(
    r'\s*Other fields present: ".*"(?=\s*Did you mean|\s*$)', "", str(text), flags=re.DOTALL
  )


def checked(source: str, stored: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A config of these values, its keys and types checked against configs/default.py.

  Args:
    source: the file that they come from, for messages.
    stored: nested values; a list may stand for a tuple, an integer for a float.

  Raises:
    InputError: keys are missing or unknown, or a value has another type.
  """
  from egad_jax.durability import workdir

  config = default.get_config()
  values, known = workdir.flat(stored), workdir.flat(config.to_dict())
  if unknown := sorted(values.keys() - known.keys()):
    raise InputError(
      f"{source} must have exactly the keys of configs/default.py; it also has "
      f"{', '.join(map(_with_suggestion(list(known)), unknown[:5]))}. Take it out, or use the "
      "version that has it."
    )
  if missing := sorted(known.keys() - values.keys()):
    raise InputError(
      f"{source} must have exactly the keys of configs/default.py; it lacks "
      f"{', '.join(missing[:5])}. Begin a config with `config = default.get_config()`."
    )
  for key, value in values.items():
    # JSON has no tuples.
    value = tuple(value) if isinstance(value, list) else value
    expected = tuple if type(known[key]) is list else type(known[key])
    of_type = type(value) is expected or (expected is float and _is_int(value))
    if key in _SEVERAL and isinstance(value, tuple):
      of_type = all(isinstance(name, str) for name in value)
    if not of_type and known[key] is not None:
      raise InputError(f"{source}: {key} must be of type {expected.__name__}; got {value!r}.")
    try:
      config.update_from_flattened_dict({key: value})
    except TypeError as error:  # A key whose default is None has a type too.
      raise InputError(f"{source}: {reason(error)}") from error
  return config


def no_such_key(key: str, known: Iterable[str], prefix: str) -> str:
  """What to say of a key that is none of `prefix` and a known one."""
  close = difflib.get_close_matches(key, [prefix + name for name in known], n=1)
  meant = f" Did you mean {close[0]}?" if close else ""
  return f"there is no key {key}; keys are those of configs/default.py after {prefix!r}.{meant}"


def _with_suggestion(known: list[str]) -> Any:
  def with_suggestion(key: str) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"{key} (did you mean {close[0]}?)" if close else key

  return with_suggestion


def stored(path: epath.Path) -> ml_collections.ConfigDict:
  """The config that a run stored.

  Raises:
    InputError: the file is missing, is no config, or has other keys or values of other types.
  """
  from egad_jax.durability import workdir

  values = workdir.read_config(path)
  if values is None:
    raise InputError(f"{path}: no such file; expected the config of a run.")
  return checked(str(path), values)


def _is_int(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)
