"""constraints/: the versions that the tests passed with, for each Python that CI runs."""

from __future__ import annotations

import pathlib
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = {
  found[1]: path
  for path in (ROOT / "constraints").iterdir()
  if (found := re.fullmatch(r"python(3\.\d+)\.txt", path.name))
}


REQUIREMENTS = ("requirements.txt", "requirements-data.txt", "requirements-dev.txt")


def versions(python: str) -> dict[str, Version]:
  """The version of each package, by its normalized name."""
  lines = [line for line in FILES[python].read_text().splitlines() if not line.startswith("#")]
  pairs = [line.split("==") for line in lines]
  return {canonicalize_name(name): Version(version) for name, version in pairs}


def direct_requirements() -> list[Requirement]:
  text = "".join((ROOT / name).read_text() for name in REQUIREMENTS)
  lines = [line.partition("#")[0].strip() for line in text.splitlines()]
  return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("python", FILES)
def test_every_direct_requirement_has_a_version_that_satisfies_it(python):
  known, wanted = versions(python), direct_requirements()
  assert len(wanted) > 20
  for requirement in wanted:
    version = known[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version), f"{requirement}, {version}"
  # jax[tpu] brings libtpu.
  assert "libtpu" in known


def test_the_documents_name_the_same_versions():
  classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
  assert [f"Programming Language :: Python :: {python}" for python in sorted(FILES)] == classifiers
  readme = (ROOT / "README.md").read_text()
  for python in FILES:
    assert f"Python {python} with jax {versions(python)['jax']}" in readme
  newest = max(FILES, key=Version)
  assert f"NEWEST={newest}\n" in (ROOT / ".ci" / "run").read_text()
  assert f"BASE=python:{newest}-slim\n" in (ROOT / "launch" / "Dockerfile").read_text()


def test_the_lowest_python_is_the_one_that_the_package_asks_for():
  wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
  assert wanted == f">={min(FILES, key=Version)}"
  assert sys.version_info >= tuple(map(int, wanted.removeprefix(">=").split(".")))
