"""Directories that are whole or absent."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from etils import epath

from egad_jax.data import cached_directory
from egad_jax.errors import InputError


@pytest.fixture
def parent(tmp_path) -> epath.Path:
  return epath.Path(tmp_path / "cache")


def _builder(calls: list[str], content: str = "x"):
  def build(directory: epath.Path) -> dict[str, str]:
    calls.append(content)
    (directory / "file").write_text(content)
    return {"content": content}

  return build


def test_built_once(parent):
  calls: list[str] = []
  for _ in range(2):
    directory = cached_directory.build_once(parent, "a", _builder(calls))
  assert directory == parent / "a"
  assert cached_directory.read_manifest(directory) == {"content": "x"}
  assert calls == ["x"]


def test_a_build_that_died_leaves_nothing_and_is_made_anew(parent):
  def die(directory: epath.Path) -> dict[str, str]:
    (directory / "half").write_text("x")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    cached_directory.build_once(parent, "a", die)
  assert not (parent / "a").exists()
  directory = cached_directory.build_once(parent, "a", _builder([]))
  names = ["egad_jax.json", "file", "manifest.json"]
  assert sorted(path.name for path in directory.iterdir()) == names
  assert sorted(path.name for path in parent.iterdir()) == [".a.lock", "a"]


@pytest.mark.parametrize("files", [["half"], ["manifest.json"], ["egad_jax.json"], []])
def test_somebody_elses_directory_of_that_name_stays(parent, files):
  (parent / "a").mkdir(parents=True)
  for name in files:
    (parent / "a" / name).write_text("{}")
  with pytest.raises(InputError, match=r"cache/a is in the way.*Nothing was touched"):
    cached_directory.build_once(parent, "a", _builder([]))
  assert sorted(path.name for path in (parent / "a").iterdir()) == files
  assert [path.name for path in parent.iterdir()] == ["a"]


def test_a_file_or_a_link_of_that_name_stays(parent, tmp_path):
  parent.mkdir()
  (parent / "a").write_text("mine")
  os.symlink(tmp_path / "nowhere", parent / "b")
  for name in ("a", "b"):
    with pytest.raises(InputError, match="is in the way"):
      cached_directory.build_once(parent, name, _builder([]))
  assert (parent / "a").read_text() == "mine"
  assert not (tmp_path / "nowhere").exists()


def test_prepared_data_without_its_manifest_is_damaged_not_deleted(parent):
  directory = cached_directory.build_once(parent, "a", _builder([]))
  (directory / "manifest.json").unlink()
  assert cached_directory.build_once(parent, "a", _builder([])) == directory
  with pytest.raises(InputError, match="Delete the directory"):
    cached_directory.read_manifest(directory)
  assert (directory / "file").exists()


def test_a_cache_among_other_files_leaves_them(tmp_path):
  (tmp_path / "mine").write_text("x")
  (tmp_path / ".partial-a").mkdir()
  (tmp_path / ".partial-a" / "mine").write_text("x")
  cached_directory.build_once(epath.Path(tmp_path), "a", _builder([]))
  assert (tmp_path / "mine").exists()
  assert (tmp_path / ".partial-a" / "mine").exists()


def test_a_lock_that_is_a_directory_is_named(tmp_path):
  (tmp_path / ".a.lock").mkdir()
  with pytest.raises(InputError, match="cannot prepare data"):
    cached_directory.build_once(epath.Path(tmp_path), "a", _builder([]))


def test_two_at_once_build_once(parent):
  calls: list[str] = []
  threads = [
    threading.Thread(target=cached_directory.build_once, args=(parent, "a", _builder(calls)))
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert calls == ["x"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "cache").write_text("a file, not a directory")
  with pytest.raises(InputError, match=r"cannot prepare data in .*cache"):
    cached_directory.build_once(epath.Path(tmp_path / "cache"), "a", _builder([]))


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("Failed to finalize writing: write() failed: No space left on device; at byte 9"),
  ],
)
def test_a_full_disk_is_named(parent, error):
  def fill(directory: epath.Path) -> dict[str, str]:
    raise error

  with pytest.raises(InputError, match=r"cannot prepare data in .* No space left on device"):
    cached_directory.build_once(parent, "a", fill)


@pytest.mark.parametrize(
  "error", [ConnectionResetError(errno.ECONNRESET, "reset"), RuntimeError("a bug")]
)
def test_other_errors_are_not_hidden(parent, error):
  def fail(directory: epath.Path) -> dict[str, str]:
    raise error

  with pytest.raises(type(error), match=r"reset|a bug"):
    cached_directory.build_once(parent, "a", fail)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_broken_manifest_is_named(tmp_path, content):
  if content is not None:
    (tmp_path / "manifest.json").write_text(content)
  with pytest.raises(InputError, match=r"manifest\.json cannot be read .*Delete the directory"):
    cached_directory.read_manifest(epath.Path(tmp_path))


def test_digest_ignores_key_order_only():
  assert cached_directory.digest({"a": 1, "b": 2}) == cached_directory.digest({"b": 2, "a": 1})
  assert cached_directory.digest([1, 2]) != cached_directory.digest([2, 1])
