"""Tests of whole files on a disk and in a stand-in for an object store."""

from __future__ import annotations

import json
import math

import pytest

from egad_jax.durability.workdir import Workdir
from egad_jax.files import storage


@pytest.fixture(params=["disk", "bucket"])
def directory(request, tmp_path, bucket):
  with Workdir(tmp_path if request.param == "disk" else bucket) as workdir:
    yield workdir.path


def test_json_has_null_for_what_is_not_finite(directory):
  path = directory / "x.json"
  value = {"a": math.nan, "b": [math.inf, 1.5, {"c": -math.inf}], "d": (1, math.nan), "e": "é"}
  storage.write_json(path, value)

  def no_constants(name):
    raise AssertionError(f"{name} is not JSON")

  expected = {"a": None, "b": [None, 1.5, {"c": None}], "d": [1, None], "e": "é"}
  assert json.loads(path.read_text(), parse_constant=no_constants) == expected
  assert storage.read_json(directory / "none.json") is None


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path, monkeypatch):
  with Workdir(tmp_path) as workdir:
    path = workdir / "x.json"
  storage.write_json(path, 1)

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(type(path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      storage.write_json(path, 2)
  assert storage.read_json(path) == 1
  storage.write_json(path, 2)
  assert storage.read_json(path) == 2


def test_the_stand_in_refuses_what_object_stores_cannot_do(bucket):
  (bucket / "x").write_text("1")
  with pytest.raises(AssertionError, match="cannot rename"):
    (bucket / "x").replace(bucket / "y")
  with pytest.raises(AssertionError, match="cannot open with"):
    (bucket / "x").open("a")


def test_only_a_process_that_writes_writes(directory):
  reader = Workdir(directory, writes=False)
  reader.write_json("x.json", 1)
  assert reader.read_json("x.json") is None


def test_a_directory_is_moved_and_deleted(directory):
  for name in ("a/x", "a/b/y"):
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(name)
  storage.move(directory / "a", directory / "c")
  assert not (directory / "a").exists()
  assert (directory / "c" / "b" / "y").read_text() == "a/b/y"
  storage.delete(directory / "c")
  assert not (directory / "c").exists()
  storage.delete(directory / "c")
