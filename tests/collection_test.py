"""No test is left out: pytest finds every file that holds some."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files of tests that pytest does not find by their names, and what runs them.
RUN_BY_OTHERS = {"tests/training/profiling_cases.py": "tests/training/profiling_test.py"}


@pytest.fixture(scope="module")
def files():
  """The Python files that git tracks or would."""
  command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
  listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def collected(pytestconfig):
  """The files that a bare `pytest` collects, by its own rules; none is imported."""
  arguments = [*pytestconfig.getini("addopts"), f"--rootdir={ROOT}"]
  config = pytest.Config.fromdictargs({}, arguments)
  session = pytest.Session.from_config(config)
  try:
    waiting = list(
      session.perform_collect([str(ROOT / p) for p in config.getini("testpaths")], genitems=False)
    )
    found = set()
    while waiting:
      node = waiting.pop()
      if isinstance(node, pytest.Directory):
        waiting += node.collect()
      else:
        found.add(node.path.relative_to(ROOT).as_posix())
    return found
  finally:
    config._ensure_unconfigure()


def test_every_test_file_is_collected(files, collected):
  assert {name for name in files if name.endswith("_test.py")} <= collected


def test_every_module_of_the_package_is_asked_for_doctests(files, collected):
  # pytest leaves out what runs when it is imported.
  asked = {name for name in files if name.startswith("egad_jax/")} - {"egad_jax/__main__.py"}
  assert asked <= collected
  assert "egad_jax/from_config/values.py" in collected


def test_every_module_with_tests_is_a_test_file(files):
  holding = {
    name
    for name in files
    if name.startswith("tests/")
    and re.search(r"^ *(async )?def test_", (ROOT / name).read_text(), re.M)
  }
  other = {name for name in holding if not name.endswith("_test.py")}
  assert other == set(RUN_BY_OTHERS)
  for name, runner in RUN_BY_OTHERS.items():
    assert name in (ROOT / runner).read_text()
