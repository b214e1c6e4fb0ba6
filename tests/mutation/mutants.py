"""The mutants of a module: every operator at every node of every function."""

from __future__ import annotations

import ast
import collections
import copy
import functools
import itertools
import pathlib
import zlib
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from tests.mutation.operators import OPERATORS, is_guard

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("losses", "head", "methods")
# A function with more mutants than this has as many run, of different operators where it can.
PER_FUNCTION = 1
# These operators come first in every function; the others take turns.
FIRST = ("detach", "mask", "bound", "power")


class Site(NamedTuple):
  """Where a mutant is, in words that survive renamed variables and moved lines.

  Attributes:
    file: the module, a path from the repository's root.
    function: qualified name of the innermost function; "" at the level of the module.
    operator: a key of `OPERATORS`.
    index: which of the operator's mutants in that function, from 0, in the order of the tree.
  """

  file: str
  function: str
  operator: str
  index: int

  def __str__(self) -> str:
    return f"{self.file}::{self.function or 'module'} {self.operator} {self.index}"


class Step(NamedTuple):
  """One step from a node to a child: in which field, and where if that is a list."""

  parent: ast.AST
  field: str
  place: int | None


class Mutant(NamedTuple):
  """A broken module.

  Attributes:
    site: where it is broken.
    before: the node's code, on one line.
    after: the code in its place.
    path: the steps from the module to the node.
    replacement: the node in its place.
  """

  site: Site
  before: str
  after: str
  path: tuple[Step, ...]
  replacement: ast.AST

  @property
  def source(self) -> str:
    """The broken module's text."""
    return ast.unparse(self.tree())

  def tree(self, top: int = 0) -> ast.AST:
    """The broken module, or the broken node that the first `top` steps lead to."""
    broken = self.replacement
    # Only the nodes on the path are copied, not the tree.
    for parent, field, place in reversed(self.path[top:]):
      whole = copy.copy(parent)
      if place is not None:
        children = list(getattr(parent, field))
        children[place] = broken
        broken = children
      setattr(whole, field, broken)
      broken = whole
    return broken


def files(root: pathlib.Path = ROOT) -> list[str]:
  """Returns the modules that are broken: all in `PACKAGES`."""
  paths = (p for name in PACKAGES for p in sorted((root / "egad_jax" / name).glob("*.py")))
  return [str(p.relative_to(root)) for p in paths if p.name != "__init__.py"]


@functools.cache
def all_mutants(file: str) -> tuple[Mutant, ...]:
  """Returns every mutant of a module, in the order of its tree."""
  return tuple(mutants_in(ast.parse((ROOT / file).read_text()), file))


def mutants_in(tree: ast.Module, file: str) -> Iterator[Mutant]:
  """Yields every mutant of a syntax tree, as those of `file`."""
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  for function, node, path in _nodes(tree, "", ()):
    before = _line(node)
    for operator, (variants, _) in OPERATORS.items():
      for replacement in variants(node):
        after = _line(replacement)
        if after != before:
          index = counts[function, operator]
          counts[function, operator] += 1
          yield Mutant(Site(file, function, operator, index), before, after, path, replacement)


def chosen(mutants: Iterable[Mutant], but: Container[Site] = ()) -> list[Mutant]:
  """Returns the mutants that are run: at most `PER_FUNCTION` of each function.

  Args:
    mutants: the mutants of one module.
    but: sites to leave out before the choice.
  """
  of_function: dict[str, dict[str, list[Mutant]]] = {}
  for mutant in mutants:
    if mutant.site not in but:
      of_operator = of_function.setdefault(mutant.site.function, {})
      of_operator.setdefault(mutant.site.operator, []).append(mutant)
  return [m for name, found in of_function.items() for m in _in_turn(name, found)[:PER_FUNCTION]]


def _in_turn(function: str, of_operator: dict[str, list[Mutant]]) -> list[Mutant]:
  """One mutant of each operator, then a second of each, and so on."""
  others = [operator for operator in OPERATORS if operator not in FIRST]
  # Functions begin with different operators, so that together they have some of all.
  start = zlib.crc32(function.encode()) % len(others)
  order = [*FIRST, *others[start:], *others[:start]]
  rows = itertools.zip_longest(*(of_operator.get(operator, []) for operator in order))
  return [mutant for row in rows for mutant in row if mutant is not None]


def _nodes(
  node: ast.AST, function: str, path: tuple[Step, ...]
) -> Iterator[tuple[str, ast.AST, tuple[Step, ...]]]:
  """Yields (qualified name of the function, node, path) of all code that computes something.

  Signatures, annotations, defaults, error messages and assertions do not; a guard is one node.
  """
  for field, place, child in _children(node):
    inside, further = function, (*path, Step(node, field, place))
    if isinstance(child, ast.FunctionDef | ast.ClassDef):
      inside = f"{function}.{child.name}" if function else child.name
    else:
      yield function, child, further
    if not is_guard(child):
      yield from _nodes(child, inside, further)


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
  """Yields (field, place in the field if it is a list, child) of the children to look at."""
  for field, value in ast.iter_fields(node):
    for place, child in enumerate(value if isinstance(value, list) else [value]):
      if isinstance(child, ast.AST) and not _is_skipped(node, field, place, child):
        yield field, place if isinstance(value, list) else None, child


def _is_skipped(node: ast.AST, field: str, place: int, child: ast.AST) -> bool:
  if isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr | ast.arguments):
    return True
  if isinstance(node, ast.FunctionDef | ast.ClassDef):
    return field != "body"
  if isinstance(node, ast.AnnAssign):
    return True  # The node stands in a class body, where it is the default of a field.
  if isinstance(node, ast.Expr):
    return isinstance(child, ast.Constant | ast.Call)  # A docstring, or dropped as a whole.
  if isinstance(node, ast.keyword):
    return node.arg == "axis"
  is_type_check = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"
  return is_type_check and place == 1


def _line(node: ast.AST) -> str:
  return " ".join(ast.unparse(node).split())
