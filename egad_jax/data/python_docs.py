"""The built-in corpus: CPython's language reference topics and standard-library docstrings.

Both come with every Python (PSF licence). `ast` parses them as source text; no module is ever
imported or run.
"""

from __future__ import annotations

import ast
import pathlib
import sysconfig
import warnings
from collections.abc import Iterator

VERSION = 1
_TOPICS = pathlib.PurePath("pydoc_data", "topics.py")
_LEFT_OUT = frozenset(
  {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "turtledemo"}
)
# Shorter paragraphs ("See also:", headings) recur naturally; a longer one seen twice would put the
# same text into both train and held-out.
_SHORTEST_UNIQUE_PARAGRAPH = 60

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def source_files(library: pathlib.Path | None = None) -> list[pathlib.Path]:
  """The files from which the corpus is made, sorted, the topics first.

  Args:
    library: the standard library's directory; None takes the running Python's.
  """
  library = library or pathlib.Path(sysconfig.get_paths()["stdlib"])
  modules = sorted(
    path
    for path in library.rglob("*.py")
    if all(_is_wanted(part) for part in path.relative_to(library).parts[:-1])
  )
  topics = library / _TOPICS
  return [topics] * topics.exists() + [path for path in modules if path != topics]


def _is_wanted(directory: str) -> bool:
  # A name with a hyphen or dot, such as config-3.11-x86_64-linux-gnu, is no package.
  return directory.isidentifier() and directory not in _LEFT_OUT


def read_python_docs(library: pathlib.Path | None = None) -> Iterator[str]:
  """Yields one document per topic and one per module (all its docstrings), without duplicates.

  A paragraph that occurred before, up to white space, is left out unless it is short, so that the
  split into train and held-out does not put the same paragraph into both.

  Args:
    library: the standard library's directory; None takes the running Python's.
  """
  library = library or pathlib.Path(sysconfig.get_paths()["stdlib"])
  seen: set[str] = set()
  for path in source_files(library):
    module = _parse(path)
    if module is None:
      continue
    if path.relative_to(library) == _TOPICS:
      for topic in _topics(module):
        yield from _unique([topic], seen)
    else:
      name = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
      yield from _unique(list(_docstrings(module, name)), seen)


def _parse(path: pathlib.Path) -> ast.Module | None:
  with warnings.catch_warnings():
    # Warnings about escapes in the library's string literals do not concern the user.
    warnings.simplefilter("ignore")
    try:
      return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
      return None


def _topics(module: ast.Module) -> Iterator[str]:
  for node in module.body:
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
      yield from (
        value.value
        for value in node.value.values
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
      )


def _docstrings(node: _Documented, name: str) -> Iterator[str]:
  """Yields heading, blank line and docstring of a module and of each class and function in it."""
  text = ast.get_docstring(node)
  if text and text.strip():
    yield f"{_heading(node, name)}\n\n{text.strip()}"
  for child in node.body:
    if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      yield from _docstrings(child, f"{name}.{child.name}")


def _heading(node: _Documented, name: str) -> str:
  if isinstance(node, ast.Module):
    return f"module {name}"
  if isinstance(node, ast.ClassDef):
    return f"class {name}"
  return f"{name}({ast.unparse(node.args)})"


def _unique(sections: list[str], seen: set[str]) -> Iterator[str]:
  """Yields the sections as one document without paragraphs in `seen`; adds the new ones to it."""
  kept = []
  for section in sections:
    paragraphs = [part for part in section.split("\n\n") if _is_new(part, seen)]
    # A heading is left out if its whole text was a repetition.
    if len(paragraphs) > 1 or (paragraphs and "\n\n" not in section):
      kept.append("\n\n".join(paragraphs).strip("\n"))
  document = "\n\n".join(kept)
  if document.strip():
    yield document + "\n"


def _is_new(paragraph: str, seen: set[str]) -> bool:
  normalised = " ".join(paragraph.split())
  if len(normalised) < _SHORTEST_UNIQUE_PARAGRAPH:
    return True
  if normalised in seen:
    return False
  seen.add(normalised)
  return True
