"""From the names in data.source to the files and data sets that are read, and their format."""

from __future__ import annotations

import functools
import glob
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from egad_jax.data import python_docs
from egad_jax.data.readers.formats import Fields
from egad_jax.data.readers.records import COMPRESSED, BadRecords, Part, suffix_of
from egad_jax.data.readers.table import FORMATS, RECORD_FILES, SCHEMES, TEXT_FILES
from egad_jax.errors import InputError
from egad_jax.files import object_store, paths

PYTHON_DOCS = "python_docs"
AUTO = "auto"
SUFFIXES = (*TEXT_FILES, *RECORD_FILES)
_EXPECTED = f"{', '.join(SUFFIXES)} (or any of them with .gz or .zst behind)"
_WEIGHT = re.compile(r"(?P<name>.*\S)\*(?P<weight>\d+(\.\d*)?|\.\d+)")
# Records that are looked at to find out a format, in case the first ones are bad.
_LOOKED_AT = 100


class Source(NamedTuple):
  """One source of a mixture.

  Attributes:
    name: the source without its weight.
    weight: how often each of its train documents occurs in an epoch; below 1 it is the share of the
      documents that occur.
    parts: the files or data sets to read, in order.
    format: name of the records' format in `FORMATS`.
    is_found: whether the format was found out by looking at records.
  """

  name: str
  weight: float
  parts: Sequence[Part]
  format: str
  is_found: bool


def split_names(sources: str | Iterable[str]) -> list[tuple[str, float]]:
  """The names and weights of `data.source`.

  Args:
    sources: a source, or several; in a string they are separated by commas. `NAME*WEIGHT` gives a
      weight, unless a file of that very name exists.

  Raises:
    InputError: there is none, or a weight is 0.

  >>> split_names("a.jsonl*2, hf:b"), split_names(("a,b.txt",))
  ([('a.jsonl', 2.0), ('hf:b', 1.0)], [('a,b.txt', 1.0)])
  """
  if isinstance(sources, str):
    # A file or directory may have a comma in its name.
    names = [sources] if _exists(sources) else [name.strip() for name in sources.split(",")]
  else:
    names = list(sources)
  found = []
  for name in names:
    match = None if _exists(name) else _WEIGHT.fullmatch(name)
    found.append((match["name"], float(match["weight"])) if match else (name, 1.0))
  if not found or not all(name for name, _ in found):
    raise InputError(f"data.source {sources!r}: a source is empty. Name files or a data set.")
  if not all(0 < weight <= 1000 for _, weight in found):
    raise InputError(f"data.source {sources!r}: a weight must be above 0 and at most 1000.")
  return found


def _exists(name: str) -> bool:
  try:
    return paths.is_local(name) and pathlib.Path(paths.expand(name, "data.source")).exists()
  except (InputError, OSError, ValueError):
    return False


def open_sources(
  sources: str | Iterable[str], *, record_format: str = AUTO, fields: Fields | None = None
) -> list[Source]:
  """Opens the sources and finds out their formats.

  Args:
    sources: see `split_names`.
    record_format: a name in `FORMATS`, or "auto".
    fields: the names of keys.

  Raises:
    InputError: a source cannot be found, or its format cannot be.
  """
  opened = []
  for name, weight in split_names(sources):
    parts = _parts(name)
    if record_format == AUTO:
      chosen = _find_format(name, parts, fields or Fields())
      logging.info("data.source %s: records of the format %s", name, chosen)
    else:
      chosen = record_format
    opened.append(Source(name, weight, parts, chosen, record_format == AUTO))
  return opened


def _parts(name: str) -> list[Part]:
  if name == PYTHON_DOCS:
    files = python_docs.source_files()
    return [Part(name, [_state_of(file) for file in files], lambda bad: _built_in())]
  for scheme, open_part in SCHEMES.items():
    if name.startswith(scheme) and "://" not in name:
      return [open_part(name)]
  files = find_files(name)
  return [_file_part(file, is_lone=len(files) == 1) for file in files]


def _built_in() -> Iterable[tuple[int, str]]:
  return enumerate(python_docs.read_python_docs(), start=1)


def _file_part(file: pathlib.Path, *, is_lone: bool) -> Part:
  suffix = suffix_of(file)
  if suffix in TEXT_FILES:
    read = functools.partial(TEXT_FILES[suffix], file, is_lone=is_lone)
  else:
    read = functools.partial(RECORD_FILES[suffix], file)
  return Part(str(file), _state_of(file), read)


def _state_of(path: Any) -> list[Any]:
  stat = path.stat()
  # epath's stat of an object store's path has other fields.
  if isinstance(path, epath.Path):
    return [str(path), stat.length, stat.mtime]
  return [str(path), stat.st_size, stat.st_mtime_ns]


def _find_format(name: str, parts: Sequence[Part], fields: Fields) -> str:
  """The format of the first usable record; "text" if there is none, whose reader says why.

  Raises:
    InputError: the record's keys are those of no format.
  """
  unknown = None
  for part in parts:
    # What is bad is counted when it is read for the corpus.
    for number, (line, record) in enumerate(part.read(BadRecords(0, is_quiet=True)), start=1):
      if isinstance(record, str):
        return "text"
      if isinstance(record, dict):
        for format_name, each in FORMATS.items():
          if all(fields.key(key, record) in record for key in each.keys):
            return format_name
        unknown = unknown or (part.name, line, sorted(map(str, record)))
      if number == _LOOKED_AT:
        break
  if unknown is None:
    return "text"
  expected = "; ".join(
    f"{', '.join(fields[key] for key in each.keys)} ({format_name})"
    for format_name, each in FORMATS.items()
  )
  raise InputError(
    f"data.source {name!r}: the format of the records cannot be found out. {unknown[0]}, line "
    f"{unknown[1]}, has the keys {unknown[2]}; expected {expected}. Set data.format, and name "
    "other keys in data.fields, such as text=body."
  )


def find_files(source: str) -> list[pathlib.Path]:
  """Lists the files of a source, sorted by name.

  Args:
    source: a file, a directory, or a glob pattern, unless a file or directory of that very name
      exists. A directory is searched recursively for files of the known kinds, without hidden ones.
      An object store, gs://BUCKET/…, is possible too; its directories are not searched recursively.

  Raises:
    InputError: there is nothing to read, or a file has an unknown suffix.
  """
  object_store.require(source, "data.source")
  try:
    if paths.is_local(source):
      path: Any = pathlib.Path(paths.expand(source, "data.source"))
    else:
      path = paths.parse(source, "data.source")
    files = sorted((file for file in _named(source, path) if not file.is_dir()), key=str)
  except InputError:
    raise
  except (OSError, RuntimeError, ValueError) as error:  # The name may be too long, say.
    raise InputError(f"data.source {source!r}: {error}. Give another name.") from error
  if not files:
    raise InputError(f"data.source {source!r}: no files to read there. Expected {_EXPECTED} files.")
  for file in files:
    if not file.is_file():
      raise InputError(
        f"data.source {source!r}: {file} is no file to read (a dangling link, or a device). "
        "Remove it."
      )
    if not _is_known(file):
      raise InputError(
        f"data.source {source!r}: {file} is of kind {file.suffix or 'no suffix'!r}; expected "
        f"{_EXPECTED}. Rename or convert it."
      )
  return files


def _is_known(file: Any) -> bool:
  # Parquet compresses by itself.
  return suffix_of(file) in SUFFIXES and not (
    file.suffix in COMPRESSED and suffix_of(file) == ".parquet"
  )


def _named(source: str, path: Any) -> Iterable[Any]:
  """The files, and possibly directories, that a source names."""
  if path.is_dir() and isinstance(path, epath.Path):
    return [file for file in path.iterdir() if _is_known(file)]
  if path.is_dir():
    return [
      file
      for file in path.rglob("*")
      if _is_known(file) and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
  if path.exists():
    return [path]
  if glob.has_magic(source):
    if isinstance(path, epath.Path):
      fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
      pattern = "/".join(path.parts[fixed:])
      return path.parents[len(path.parts) - fixed - 1].glob(pattern)
    # Parts of the pattern that exist as directories are literal, whatever characters they have.
    fixed = next(place for place in path.parents if place.exists())
    pattern = str(path.relative_to(fixed))
    return (fixed / name for name in glob.glob(pattern, root_dir=fixed, recursive=True))
  raise InputError(
    f"data.source {source!r}: no such file or directory, and not a glob pattern. Give a file "
    f"({_EXPECTED}), a directory or pattern of them, hf:NAME, tfds:NAME, or python_docs."
  )
