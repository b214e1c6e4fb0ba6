"""Naming files: paths and files inside installed packages."""

from __future__ import annotations

import pytest

from egad_jax import sources
from egad_jax.errors import InputError


def test_path_is_resolved(tmp_path):
  file = tmp_path / "a.gguf"
  file.write_bytes(b"")
  assert sources.resolve(str(file)) == file
  assert sources.resolve(file) == file


def test_home_is_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "model").mkdir()
  assert sources.resolve("~/model") == tmp_path / "model"


def test_package_is_found_without_importing_it(tmp_path, monkeypatch):
  package = tmp_path / "weights_for_test"
  package.mkdir()
  (package / "__init__.py").write_text("raise RuntimeError('imported')")
  (package / "a.gguf").write_bytes(b"")
  monkeypatch.syspath_prepend(tmp_path)
  assert sources.resolve("python:weights_for_test/a.gguf") == package / "a.gguf"
  with pytest.raises(InputError, match=r"no file 'b\.gguf'; it has: a\.gguf"):
    sources.resolve("python:weights_for_test/b.gguf")


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("/nowhere/model.gguf", "no such file or directory"),
    ("", "must be a path"),
    ("~nobody_of_that_name/x", "no home directory for ~nobody_of_that_name"),
    ("file:///etc/passwd", "without file://"),
    ("python:not_installed_here/a.gguf", "pip install not-installed-here"),
    ("python:no_file", "expected python:PACKAGE/FILE"),
    ("python:a.b/c", "expected python:PACKAGE/FILE"),
  ],
)
def test_what_is_missing_is_said(source, message):
  with pytest.raises(InputError, match=message):
    sources.resolve(source)


@pytest.mark.parametrize(
  "name",
  [
    "python:egad_jax/../configs/tiny.py",
    "python:egad_jax//etc/passwd",
    "python:egad_jax/..",
    "python:egad_jax/.",
    "python:__main__/x",
    "python:os/x",
    "~nobody_of_that_name/x",
    "a" * 5000,
    "python:egad_jax/" + "a" * 5000,
    "a\0b",
    "~\0/a",
  ],
)
def test_names_that_lead_elsewhere_or_nowhere_are_refused(name):
  with pytest.raises(InputError, match="source "):
    sources.resolve(name)
