"""Pytest plugin of a mutation run: imports one module broken, and says which test failed how.

Reads the environment: MUTANT_FILE and MUTANT_SOURCE, the module's path from the root and a file
with its broken text (both absent in the baseline); MUTANT_FIRST, the ids of tests to run before
others, one a line; MUTANT_VERDICT, the JSON file to write. The working tree is never touched, so
runs do not disturb each other or an editor.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import sys
import time

from tests.mutation.mutants import ROOT


class MutatedLoader(importlib.machinery.SourceFileLoader):
  """Loads the text it was given, from no cache and into none."""

  def __init__(self, name: str, path: str, source: str) -> None:
    super().__init__(name, path)
    self.source = source

  def get_code(self, fullname: str):
    return compile(self.source, self.get_filename(fullname), "exec", dont_inherit=True)


class MutantFinder(importlib.abc.MetaPathFinder):
  """Finds one module of the package, and gives it another text."""

  def __init__(self, file: str, source: str) -> None:
    self.path = str(ROOT / file)
    self.name = file.removesuffix(".py").replace("/", ".")
    self.source = source

  def find_spec(self, fullname, path=None, target=None):
    if fullname != self.name:
      return None
    loader = MutatedLoader(fullname, self.path, self.source)
    return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)

  def is_loaded(self) -> bool:
    """Whether the module that tests see is the broken one."""
    return isinstance(getattr(sys.modules.get(self.name), "__loader__", None), MutatedLoader)


_finder: MutantFinder | None = None
_failed: dict[str, str] = {}
if "MUTANT_FILE" in os.environ:
  _source = pathlib.Path(os.environ["MUTANT_SOURCE"]).read_text()
  _finder = MutantFinder(os.environ["MUTANT_FILE"], _source)
  sys.meta_path.insert(0, _finder)


def pytest_collection_modifyitems(items):
  """Puts the tests first that killed earlier mutants of the same function."""
  first = os.environ.get("MUTANT_FIRST", "").splitlines()
  items.sort(key=lambda item: first.index(item.nodeid) if item.nodeid in first else len(first))


def pytest_runtest_makereport(item, call):
  """Remembers the first failure; the report itself knows no type of error."""
  if call.excinfo is not None and not call.excinfo.errisinstance(_skipped()) and not _failed:
    message = " ".join(str(call.excinfo.value).split())
    error = call.excinfo.typename
    _failed.update(test=item.nodeid, when=call.when, error=error, message=message[:200])


def pytest_sessionfinish(session, exitstatus):
  """Writes the verdict."""
  if "MUTANT_VERDICT" in os.environ:
    loaded = _finder is not None and _finder.is_loaded()
    verdict = {"exit": int(exitstatus), "loaded": loaded, "failed": _failed}
    verdict["cpu"] = round(time.process_time(), 1)
    pathlib.Path(os.environ["MUTANT_VERDICT"]).write_text(json.dumps(verdict))


def _skipped():
  import pytest

  return pytest.skip.Exception
