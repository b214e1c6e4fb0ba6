"""Which tests are asked about a module: its own doctests, and those nearest by name and import."""

from __future__ import annotations

import ast
import functools
import math
import pathlib
import re

from tests.mutation.mutants import PACKAGES, ROOT

# Further files rarely kill what these let live, and a survivor waits for all of them.
MOST = 4
_IMPORT = re.compile(r"^ *from ([\w.]+) import (\([^)]*\)|.*)", re.MULTILINE)


@functools.cache
def nearest_tests(file: str) -> tuple[str, ...]:
  """Returns the test files of a module, nearest first, as paths from the repository's root.

  The last is the module itself, for its doctests. Before it, first come the tests that bear its
  name, then those that import something from it, then those that import a module that imports it.
  Among equals, tests of the importing module come before others, then those of its package, then
  those that import least. One test file of another package than `PACKAGES` is asked when these
  have none.
  """
  tests = _nearest(file, PACKAGES) or _nearest(file, ("",))[:1]
  return (*tests, file) if ">>>" in (ROOT / file).read_text() else tests


def _nearest(file: str, packages: tuple[str, ...]) -> tuple[str, ...]:
  ring, distance = {file}, {file: 0}
  for steps in (1, 2):
    ring = {p for p in _modules(packages) if p not in distance and _imported(p) & ring}
    distance |= dict.fromkeys(ring, steps)

  def rank(test: str) -> tuple[float, bool, bool, int, str]:
    reached = {path: distance[path] for path in _imported(test) if path in distance}
    nearest = min(reached.values(), default=math.inf)
    bears_name = any(_is_named(test, path) for path, d in reached.items() if d == nearest)
    return (
      -1 if _is_named(test, file) else nearest,
      not bears_name,
      pathlib.Path(test).parent.name != pathlib.Path(file).parent.name,
      len(_imported(test)),
      test,
    )

  ranked = sorted(rank(test) for test in _paths("tests", packages, "*_test.py"))
  return tuple(test for near, *_, test in ranked if near < math.inf)[:MOST]


def _is_named(test: str, file: str) -> bool:
  """Whether a test is called x_test or x_y_test, of a module x."""
  return pathlib.Path(test).stem.startswith(f"{pathlib.Path(file).stem}_")


def _paths(directory: str, packages: tuple[str, ...], pattern: str) -> list[str]:
  paths = (path for name in packages for path in (ROOT / directory / name).rglob(pattern))
  return sorted(str(path.relative_to(ROOT)) for path in paths)


@functools.cache
def _modules(packages: tuple[str, ...]) -> tuple[str, ...]:
  return tuple(p for p in _paths("egad_jax", packages, "*.py") if not p.endswith("__init__.py"))


@functools.cache
def _defined(package: str) -> dict[str, str]:
  """Maps each name that one of `PACKAGES` defines to the module that defines it."""
  names = {}
  for path in _modules(PACKAGES):
    if path.startswith(f"{package}/"):
      for node in ast.parse((ROOT / path).read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        names |= dict.fromkeys((getattr(t, "id", getattr(t, "name", "")) for t in targets), path)
  return names


@functools.cache
def _imported(path: str) -> frozenset[str]:
  """The modules of egad_jax that a file imports, also by way of the tests' own helpers."""
  found: set[str] = set()
  helpers = [path]
  for reader in helpers:  # It grows meanwhile.
    for module, names in _IMPORT.findall((ROOT / reader).read_text()):
      base, aliases = module.replace(".", "/"), re.findall(r"\w+", names)
      for name in [f"{base}.py", *(f"{base}/{alias}.py" for alias in aliases)]:
        if base.startswith("egad_jax") and (ROOT / name).is_file():
          found.add(name)
        elif base.startswith("tests") and (ROOT / name).is_file() and name not in helpers:
          helpers.append(name)
      found |= {_defined(base)[alias] for alias in aliases if alias in _defined(base)}
  return frozenset(found)
