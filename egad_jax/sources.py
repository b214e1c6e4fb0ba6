"""Finds a file that a config names: by path, in an installed Python package, or on the Hub."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from typing import cast

from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import hub, object_store, paths

_PACKAGE_SCHEME = "python:"


def resolve(source: str | os.PathLike[str], *, weights: bool = True) -> pathlib.Path:
  """Turns the name of a source into the path of an existing file or directory.

  Args:
    source: a path (`~` is expanded); a directory in an object store, such as gs://BUCKET/DIRECTORY;
      `python:PACKAGE/FILE` for a file that ships inside an
      installed Python package, which is located but never imported; or `hf:NAME[@REVISION]` for a
      model on the Hugging Face Hub, which is downloaded if it is not in the local cache.
    weights: whether a model's weights are needed, and not only its tokenizer; a model on the Hub is
      downloaded without them otherwise.

  Returns:
    The path of the file or directory, which exists.

  Raises:
    InputError: there is no such path, package, file or model, or it cannot be downloaded.
  """
  name = os.fspath(source)
  if name.startswith(_PACKAGE_SCHEME):
    return _resolve_in_package(name)
  if hub.is_on_hub(name):
    return hub.snapshot(name, weights=weights)
  if name.startswith(object_store.SCHEMES):
    return _in_store(name)
  path = _existing(name)
  if path is None:
    raise InputError(
      f"source {name!r}: no such file or directory (looked in {pathlib.Path.cwd()} for relative "
      "paths). Give an existing path, python:PACKAGE/FILE for a file inside an installed package, "
      "or hf:NAME for a model on the Hugging Face Hub."
    )
  return path


def _in_store(name: str) -> pathlib.Path:
  object_store.require(name, "source")
  path = epath.Path(name)
  if not path.is_dir():
    raise InputError(
      f"source {name!r}: no such directory. In an object store a source is a Hugging Face "
      "directory; a GGUF file is mapped into memory, so copy it to a disk."
    )
  # It has the methods of a pathlib.Path.
  return cast(pathlib.Path, path)


def _existing(name: str) -> pathlib.Path | None:
  try:
    path = pathlib.Path(paths.expand(name, "source"))
    return path if path.exists() else None
  except PermissionError as error:
    raise InputError(
      f"source {name!r}: {error.strerror}. Make it readable for this user."
    ) from error
  except OSError:  # For example, the name is too long.
    return None


def _resolve_in_package(name: str) -> pathlib.Path:
  package, _, file = name.removeprefix(_PACKAGE_SCHEME).partition("/")
  relative = pathlib.PurePosixPath(file)
  inside = bool(relative.parts) and not relative.is_absolute() and ".." not in relative.parts
  if not inside or not package.isidentifier():
    raise InputError(
      f"source {name!r}: expected python:PACKAGE/FILE, like python:my_package/a.gguf, with a FILE "
      "inside the package."
    )
  try:
    spec = importlib.util.find_spec(package)
  # find_spec raises this for a module that was not imported by a finder, such as __main__.
  except ValueError:
    spec = None
  locations = list(spec.submodule_search_locations or ()) if spec else []
  if not locations:
    distribution = package.replace("_", "-")
    raise InputError(
      f"source {name!r}: the Python package {package!r} is not installed in this environment. "
      f"Install it with `pip install {distribution}`, or give a path instead."
    )
  for location in locations:
    path = _existing(os.path.join(location, file))
    if path is not None:
      return path
  present = sorted(
    p.name for p in pathlib.Path(locations[0]).iterdir() if not p.name.startswith("_")
  )
  raise InputError(
    f"source {name!r}: the package {package!r} has no file {file!r}; it has: "
    f"{', '.join(present) or 'no files'}."
  )
