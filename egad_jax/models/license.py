"""The licence that a model's files state: README.md, a LICENSE file, or GGUF metadata."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from egad_jax.files.gguf_file import as_list

# Bytes that are read at the beginning of a model card or a licence.
_MAX_BYTES = 2**16
_MAX_TEXT = 200
_GGUF_KEYS = ("general.license", "general.license.name", "general.license.link")
_FILES = re.compile(r"(licen[cs]e|copying)([.-].*)?", re.IGNORECASE)


class License(NamedTuple):
  """A licence that a model's files state.

  Attributes:
    identifier: identifier such as "apache-2.0", or "other"; several are joined by commas.
    name: name of a licence without an identifier; None if it is not named.
    link: address of its text, or name of a file in the model's directory; None if unknown.
  """

  identifier: str
  name: str | None = None
  link: str | None = None


def license_of_directory(directory: pathlib.Path) -> License | None:
  """The licence in the front matter of README.md, else the title of a LICENSE file.

  Front matter that cannot be parsed counts as absent: the licence is only shown to people.

  Returns:
    The licence; None if no file states one.
  """
  stated = _of_front_matter(directory / "README.md")
  if stated is not None:
    return stated
  for path in sorted(directory.iterdir()):
    if path.is_file() and _FILES.fullmatch(path.name):
      lines = (_text(line) for line in _beginning(path).splitlines())
      title = next(filter(None, lines), None)
      return License("other", title, path.name)
  return None


def license_of_gguf(metadata: Mapping[str, Any]) -> License | None:
  """The licence that the metadata of a GGUF file states; None if it states none."""
  return _stated(
    *(as_list(value) or [value] for value in (metadata.get(key) for key in _GGUF_KEYS))
  )


def _of_front_matter(path: pathlib.Path) -> License | None:
  if not path.is_file():
    return None
  front = re.match(r"\s*---[ \t]*\n(.*?)\n(---|\.\.\.)[ \t]*(\n|$)", _beginning(path), re.DOTALL)
  if not front:
    return None
  try:
    # Nodes instead of values: dates and numbers keep their text, and no alias is expanded.
    node = yaml.compose(front[1], Loader=yaml.SafeLoader)
  except (yaml.YAMLError, RecursionError):
    return None
  found = _fields(node)
  identifier = found.get("license")
  nested = _fields(identifier)
  if nested:
    stated = (nested.get("id"), nested.get("name"), nested.get("link", nested.get("url")))
  else:
    stated = (identifier, found.get("license_name"), found.get("license_link"))
  return _stated(*map(_scalars, stated))


def _fields(node: Any) -> dict[str, yaml.Node]:
  if not isinstance(node, yaml.MappingNode):
    return {}
  return {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}


def _scalars(node: Any) -> list[str]:
  nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
  return [each.value for each in nodes if isinstance(each, yaml.ScalarNode)]


def _beginning(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    text = file.read(_MAX_BYTES).decode("utf-8-sig", "replace")
  return text.replace("\r\n", "\n").replace("\r", "\n")


def _stated(identifiers: list[Any], names: list[Any], links: list[Any]) -> License | None:
  identifier, name, link = (
    ", ".join(text for text in map(_text, values) if text) or None
    for values in (identifiers, names, links)
  )
  return License(identifier or "other", name, link) if identifier or name else None


def _text(value: Any) -> str | None:
  """A value as one line of text; None if it is not text, or is empty or "unknown"."""
  if not isinstance(value, str) or value.strip().lower() in ("", "null", "none", "~", "unknown"):
    return None
  return " ".join(value.split())[:_MAX_TEXT]
