"""Paths as people write them: home directories, odd characters, object stores."""

from __future__ import annotations

import os
import pathlib
import pwd

import pytest
from etils import epath

from egad_jax.errors import InputError
from egad_jax.files import paths

# Names that some library takes for a pattern, a URL or another directory.
ODD = [
  "run[lr=3e-4]",
  "back\\slash",
  "a*b?",
  "**",
  "{x,y}",
  "a b",
  "é",
  "quote'\"",
  "new\nline",
  "#%3A",
  "~",
  "a~",
  "-x",
  "logs:",
  b"\xff.bytes".decode("utf-8", "surrogateescape"),
]


def test_tilde_is_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  user = pwd.getpwuid(os.geteuid())
  for name, expected in {
    "~": tmp_path,
    "~/runs/a/": tmp_path / "runs" / "a",
    f"~{user.pw_name}/x": pathlib.Path(user.pw_dir) / "x",
    "./~/x": tmp_path / "~" / "x",
    "a/~": tmp_path / "a" / "~",
  }.items():
    assert os.fspath(paths.parse(name, "--workdir")) == str(expected)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("~nobody_of_that_name/x", "no home directory for ~nobody_of_that_name.*./~nobody"),
    ("", "must be a path"),
    ("a\0b", "must be a path"),
    ("file:///etc/x", "file:// is not supported.*gs://"),
    ("ftp://host/x", "ftp:// is not supported"),
  ],
)
def test_what_is_no_path_is_named_with_its_flag(name, words):
  with pytest.raises(InputError, match=rf"--workdir .*{words}"):
    paths.parse(name, "--workdir")


def test_nobody_has_no_home(monkeypatch):
  monkeypatch.delenv("HOME")
  monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
  with pytest.raises(InputError, match=r"config\.data\.cache '~/x': there is no home directory"):
    paths.local("~/x", "config.data.cache")


def test_a_current_directory_that_is_gone_is_said(tmp_path, monkeypatch):
  (tmp_path / "gone").mkdir()
  monkeypatch.chdir(tmp_path / "gone")
  (tmp_path / "gone").rmdir()
  with pytest.raises(InputError, match="current directory no longer exists"):
    paths.parse("x", "--output")


def test_object_stores_keep_their_names():
  path = paths.parse("gs://bucket/~/run[1]", "--workdir")
  assert (os.fspath(path), paths.is_local(path)) == ("gs://bucket/~/run[1]", False)
  with pytest.raises(InputError, match="must be a path on a disk"):
    paths.local("gs://bucket/x", "config.data.cache")


@pytest.mark.parametrize("name", ODD)
def test_every_character_is_itself(tmp_path, name):
  directory = paths.parse(tmp_path / name, "--workdir")
  directory.mkdir()
  assert os.listdir(tmp_path) == [name]
  for file in ("one.x", "two.x~", "three.y"):
    (directory / file).write_text("")
  assert {path.name for path in directory.iterdir()} == {"one.x", "two.x~", "three.y"}
  assert isinstance(epath.Path(directory) / "a" / "b", paths.LocalPath)
  # Also under the name that is given to Orbax and others.
  spoken = paths.speakable(directory)
  assert not set(os.fspath(spoken)) & set("\\*?[")
  assert "gs:/" not in os.fspath(spoken / "x")
  os.fspath(spoken).encode()
  assert os.path.samefile(spoken, directory)


def test_a_directory_named_like_a_scheme_is_on_the_disk(tmp_path):
  assert not paths.parse("/gs/no-such-bucket/x", "--workdir").exists()
  assert paths.is_local(paths.parse("/s3/x", "--workdir"))
