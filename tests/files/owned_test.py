"""What is ours and what is not: nobody else's file is ever replaced or removed."""

from __future__ import annotations

import os
import pathlib
import shutil

import filelock
import pytest

from egad_jax.errors import InputError
from egad_jax.files import owned, paths, replacing


def make(directory, **files):
  """A directory with files."""
  directory.mkdir(parents=True)
  for name, text in files.items():
    (directory / name).write_text(text)
  return directory


def write(target, **files):
  """Replaces a directory by files of ours."""
  with replacing.replacing(paths.parse(target, "--output"), "--output", owned.EXPORT) as staged:
    for name, text in files.items():
      (staged / name).write_text(text)


def snapshot(root):
  """Everything below a directory: names, kinds and contents; links are not followed."""
  found = {}
  for directory, names, files in os.walk(root):
    for name in names + files:
      path = pathlib.Path(directory, name)
      content = os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
      found[str(path)] = content
  return found


def require(target):
  replacing.require_replaceable(paths.parse(target, "--output"), "--output", owned.EXPORT)


@pytest.fixture
def ours(tmp_path):
  write(tmp_path / "ours", a="one", b="two")
  return tmp_path / "ours"


def test_ours_are_replaced_whole(ours):
  write(ours, b="three", c="four")
  assert {p.name: p.read_text() for p in ours.iterdir() if p.name != owned.MARK} == {
    "b": "three",
    "c": "four",
  }
  assert os.listdir(ours.parent) == ["ours"]


def test_new_and_empty_directories_are_filled(tmp_path):
  (tmp_path / "empty").mkdir()
  for name in ("empty", "new/in/new"):
    write(tmp_path / name, a="x")
    assert (tmp_path / name / "a").read_text() == "x"


def test_a_copy_of_ours_is_ours(ours, tmp_path):
  shutil.copytree(ours, tmp_path / "copy", copy_function=shutil.copy)
  os.utime(tmp_path / "copy" / "a")
  write(tmp_path / "copy", a="x")


def add_file(ours):
  (ours / "notes.txt~").write_text("mine")


def add_directory(ours):
  (ours / "original").mkdir()


def edit(ours):
  (ours / "a").write_text("longer")


def edit_in_place(ours):
  status = (ours / "a").stat()
  (ours / "a").write_text("eno")
  os.utime(ours / "a", ns=(status.st_atime_ns, status.st_mtime_ns))


def link_file(ours):
  (ours.parent / "elsewhere").write_text("one")
  (ours / "a").unlink()
  (ours / "a").symlink_to(ours.parent / "elsewhere")


def break_mark(ours):
  (ours / owned.MARK).write_text("{")


def other_mark(ours):
  (ours / owned.MARK).write_text('{"kind": "export", "files": {"a": null, "b": null}}')


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (add_file, "notes.txt~"),
    (add_directory, "original"),
    (edit, r"a \(changed"),
    (edit_in_place, r"a \(changed"),
    (link_file, r"a \(changed"),
    (break_mark, "a, b"),
    (other_mark, "a, b"),
  ],
)
def test_ours_with_something_of_others_stays(ours, change, named):
  change(ours)
  before = snapshot(ours.parent)
  with pytest.raises(InputError, match=rf"--output .*holds .*{named}.*Nothing was touched"):
    write(ours, a="x")
  assert snapshot(ours.parent) == before


def test_what_is_no_directory_of_ours_stays(tmp_path, monkeypatch):
  monkeypatch.chdir(make(tmp_path / "here" / "in", a="x"))
  (tmp_path / "file").write_text("x")
  (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
  (tmp_path / "link").symlink_to(tmp_path / "here")
  (tmp_path / "empty").mkdir()
  before = snapshot(tmp_path)
  for name, words in {
    tmp_path / "here": "current directory",
    tmp_path / "link": "current directory",
    ".": "current directory",
    "..": "current directory",
    "/": "current directory",
    tmp_path / "file": "is a file",
    tmp_path / "file" / "x": "below .*file, which is a file",
    tmp_path / "dangling": "nowhere, which does not exist",
    "/dev": "mount point",
    "/etc": "holds ",
  }.items():
    with pytest.raises(InputError, match=rf"--output .*{words}"):
      write(name, a="y")
  monkeypatch.chdir(tmp_path / "empty")
  with pytest.raises(InputError, match="current directory"):
    write(".", a="y")
  assert snapshot(tmp_path) == before


def test_a_link_to_ours_is_kept(ours):
  (ours.parent / "link").symlink_to(ours)
  write(ours.parent / "link", a="x")
  assert (ours.parent / "link").is_symlink()
  assert (ours / "a").read_text() == "x"


def test_a_parent_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "locked").mkdir(mode=0o500)
  user = os.geteuid()
  tmp_path.chmod(0o755)
  try:
    if user == 0:  # Root writes anywhere, so be nobody for a moment.
      os.seteuid(65534)
    if os.access(tmp_path, os.R_OK, effective_ids=True):
      with pytest.raises(InputError, match=r"cannot be made: .*locked cannot be written"):
        require(tmp_path / "locked" / "new" / "out")
  finally:
    os.seteuid(user)


def test_nothing_is_put_into_ours(ours, tmp_path):
  make(tmp_path / "run" / "checkpoints" / "5")
  owned.write_mark(tmp_path / "run", owned.WORKDIR, {}, closed=["checkpoints"])
  for name in ("ours/sub", "run/checkpoints/x", "run/checkpoints/5", "run/checkpoints"):
    with pytest.raises(InputError, match=r"inside .*(ours|checkpoints), which egad_jax keeps"):
      require(tmp_path / name)
  require(tmp_path / "run" / "export-4")


def test_what_is_read_is_not_replaced(ours, tmp_path):
  (tmp_path / "link").symlink_to(ours)
  read = {"config.teacher.source": ours}
  for name in ("ours", "link", "", "ours/sub", "ours/../ours", "link/new/er"):
    target = paths.parse(tmp_path / name, "--output")
    with pytest.raises(InputError, match=r"--output .*and config\.teacher\.source .*apart"):
      owned.require_apart(target, "--output", read)
  for name in ("other", "ours2", "x/ours"):
    owned.require_apart(paths.parse(tmp_path / name, "--output"), "--output", read)


def test_a_failure_leaves_what_was_there(ours, monkeypatch):
  before = snapshot(ours.parent)
  with pytest.raises(ZeroDivisionError), replacing.scratch(ours.parent):
    raise ZeroDivisionError
  rename = pathlib.Path.rename
  fail = lambda path, to: rename(path, to) if path.name != "new" else rename(path / "no", to)
  monkeypatch.setattr(pathlib.Path, "rename", fail)
  with pytest.raises(FileNotFoundError):
    write(ours, a="x")
  assert snapshot(ours.parent) == before


def killed(parent, *, old=False, replaces="ours"):
  """What a killed process leaves: the scratch directory, whole, with a lock that nobody holds."""
  work = make(parent / f"{owned.PREFIX}abc", **{".lock": ""})
  make(work / "new", a="half")
  owned.write_mark(work, owned.SCRATCH, {}, replaces=replaces)
  if old:
    (parent / replaces).rename(work / "old")


@pytest.mark.parametrize("old", [False, True])
def test_what_killed_processes_left_goes_and_what_they_took_comes_back(ours, old):
  before = snapshot(ours.parent)
  killed(ours.parent, old=old)
  replacing.sweep(ours.parent)
  assert snapshot(ours.parent) == before


def test_scratch_directories_in_use_and_those_of_others_stay(tmp_path):
  killed(tmp_path)
  make(tmp_path / f"{owned.PREFIX}mine", a="x")
  make(tmp_path / "far")
  killed(tmp_path / "far")
  (tmp_path / f"{owned.PREFIX}link").symlink_to(tmp_path / "far" / f"{owned.PREFIX}abc")
  before = snapshot(tmp_path)
  with filelock.FileLock(tmp_path / f"{owned.PREFIX}abc" / ".lock"):
    replacing.sweep(tmp_path)
    assert snapshot(tmp_path) == before
  replacing.sweep(tmp_path)
  assert sorted(os.listdir(tmp_path)) == [f"{owned.PREFIX}link", f"{owned.PREFIX}mine", "far"]
  assert os.listdir(tmp_path / "far" / f"{owned.PREFIX}abc")


def test_object_stores(bucket):
  target = os.fspath(bucket)
  write(target, **{"a": "one", "config.json": "{}"})
  write(target, **{"b": "two", "config.json": "{}"})
  assert {path.name for path in bucket.iterdir()} == {"b", "config.json", owned.MARK}
  (bucket / "mine").write_text("x")
  with pytest.raises(InputError, match="holds mine"):
    write(target, b="three")
  (bucket / "mine").unlink()
  (bucket / "b").write_text("longer")
  with pytest.raises(InputError, match=r"holds b \(changed"):
    write(target, b="three")
  assert (bucket / "b").read_text() == "longer"


def test_a_file_is_written_beside_and_not_through_links(tmp_path):
  (tmp_path / "precious").write_text("mine")
  for name in ("x", f"{owned.PREFIX}x{owned.PARTIAL}"):
    (tmp_path / name).symlink_to(tmp_path / "precious")
  owned.write_text(paths.LocalPath(tmp_path / "x"), "new")
  assert (tmp_path / "precious").read_text() == "mine"
  assert (tmp_path / "x").read_text() == "new"
