"""Checkpoints of ours among directories of others, in workdirs of any name."""

from __future__ import annotations

import os
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from egad_jax.durability import restoring
from egad_jax.durability.checkpoints import CheckpointError, Checkpoints
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError

STATE = {"a": jax.numpy.arange(6000.0), "step": jax.numpy.int32(3)}
LIKE = restoring.abstract(STATE, jax.tree.map(lambda x: x.sharding, STATE))


def save(directory, *steps, keep=9, **options):
  opened = Checkpoints(epath.Path(directory), keep=keep, **options)
  for step in steps:
    opened.save(step, STATE, {"tokens": step})
  opened.wait()
  opened.close()


def restored(directory):
  opened = Checkpoints(epath.Path(directory))
  try:
    return opened.restore_latest(LIKE)
  finally:
    opened.close()


def names(directory):
  return sorted(os.listdir(directory))


@pytest.fixture
def directory(tmp_path):
  """The checkpoints 10 and 20 of a workdir."""
  with Workdir(tmp_path / "run") as workdir:
    save(workdir / "checkpoints", 10, 20)
  return tmp_path / "run" / "checkpoints"


# Each is taken for something else by Orbax or TensorStore; tests/files/paths_test.py has more.
NAMES = ["run[1]", "back\\slash", "**", "logs:", b"\xff".decode("utf-8", "surrogateescape"), "~"]


@pytest.mark.parametrize("name", NAMES)
def test_a_workdir_may_have_any_name(tmp_path, monkeypatch, name):
  # A neighbour that the name, taken for a pattern, would find.
  save(tmp_path / "run1" / "checkpoints", 7)
  with Workdir(tmp_path / name) as workdir:
    save(workdir / "checkpoints", 1, 2, keep=1)
    assert restored(workdir / "checkpoints")[0] == 2
  assert names(tmp_path / name / "checkpoints") == ["2"]
  monkeypatch.chdir(tmp_path)
  for form in (f"./{name}", f"./{name}/checkpoints/2/", f"run1/../{name}/checkpoints/2"):
    (tmp_path / name / "config.json").write_text("{}")
    where, step = restoring.locate(form)
    step, state = restoring.restore_state(where, step, LIKE)
    assert step == 2
    np.testing.assert_array_equal(state["a"], STATE["a"])
  assert names(tmp_path) == sorted(["run1", name])


def test_forms_of_a_checkpoint(directory, tmp_path, monkeypatch):
  run = directory.parent
  with pytest.raises(InputError, match=r"must be a workdir with config\.json"):
    restoring.locate(str(run))
  (run / "config.json").write_text("{}")
  (tmp_path / "latest").symlink_to(directory / "20")
  (tmp_path / "link").symlink_to(run)
  monkeypatch.chdir(directory / "10")
  for form, step in {
    str(run): None,
    f"{run}/": None,
    f"{directory}/20": 20,
    f"{directory}/20/": 20,
    f"{tmp_path}/link/checkpoints/20": 20,
    f"{tmp_path}/latest": 20,
    ".": 10,
    "..//20": 20,
  }.items():
    assert restoring.locate(form)[1] == step
  (directory / "quarantine" / "5").mkdir(parents=True)
  for form, words in {
    f"{directory}/30": r"does not exist; saved steps are \[10, 20\]",
    f"{directory}/020": r"does not exist; saved steps are \[10, 20\]",
    f"{directory}/²": r"saved steps are \[10, 20\]",
    str(directory): r"saved steps are \[10, 20\]",
    f"{directory}/best": r"saved steps are \[10, 20\]",
    f"{directory}/quarantine/5": "quarantine/ is damaged",
    f"{run}/export": "there is none",
    f"{run}/config.json": "there is none",
    "~nobody_of_that_name": "no home directory",
  }.items():
    with pytest.raises(InputError, match=rf"--checkpoint .*{words}"):
      restoring.locate(form)


def empty(path):
  path.mkdir()


def model(path):
  path.mkdir()
  (path / "model.bin").write_text("x")


def file(path):
  path.write_text("x")


def link(path):
  path.symlink_to("/nowhere")


def of_another_program(path):
  ocp.PyTreeCheckpointer().save(path.absolute(), {"w": np.zeros(3)})


@pytest.mark.parametrize("put", [empty, model, file, link, of_another_program])
def test_what_others_put_beside_our_steps_is_refused_and_stays(directory, put):
  put(directory / "999")
  before = {p: p.is_file() and p.read_bytes() for p in directory.rglob("*")}
  with pytest.raises(InputError, match=r"checkpoints holds 999, which this run did not write"):
    restored(directory)
  save(directory, 30, keep=1)
  after = {p: p.is_file() and p.read_bytes() for p in directory.rglob("*")}
  assert {p: after[p] for p in before if "999" in p.parts} == {
    p: before[p] for p in before if "999" in p.parts
  }
  assert names(directory) == ["30", "999"]


def test_a_copy_of_our_own_and_a_damaged_one_are_ours(directory, tmp_path):
  with Workdir(tmp_path / "other") as workdir:
    save(workdir / "checkpoints", 40)
  shutil.copytree(tmp_path / "other" / "checkpoints" / "40", directory / "40")
  assert restored(directory)[0] == 40
  shutil.rmtree(directory / "40")
  shutil.rmtree(directory / "20" / "meta")
  assert restored(directory)[0] == 10
  assert names(directory / "quarantine") == ["20"]


def test_only_remains_of_our_own_saves_are_cleaned(directory):
  for name in ("20-deleted.orbax-checkpoint-tmp", "mine.orbax-checkpoint-tmp", "notes"):
    (directory / name).mkdir()
    (directory / name / "x").write_text("x")
  (directory / "10.orbax-checkpoint-tmp").symlink_to(directory / "notes")
  save(directory, 30)
  assert names(directory) == [
    "10",
    "10.orbax-checkpoint-tmp",
    "20",
    "30",
    "mine.orbax-checkpoint-tmp",
    "notes",
  ]
  assert names(directory / "notes") == ["x"]


def test_links_are_never_followed_to_delete(directory, tmp_path):
  for place in ("20", "."):
    (directory / place).rename(tmp_path / "disk")
    (directory / place).parent.mkdir(exist_ok=True)
    (directory / place).symlink_to(tmp_path / "disk")
    assert restored(directory)[0] == 20
    if place == "20":
      save(directory, 30, keep=1)
      # The link stays, and what it leads to.
      assert names(directory) == ["20", "30"]
      assert names(tmp_path / "disk") == names(directory / "30")
      return


def test_a_directory_of_checkpoints_on_another_disk_works(tmp_path):
  (tmp_path / "disk").mkdir()
  with Workdir(tmp_path / "run") as workdir:
    pathlib.Path(workdir / "checkpoints").symlink_to(tmp_path / "disk")
    save(workdir / "checkpoints", 1, 2, keep=1)
    workdir.require_ours()
    assert restored(workdir / "checkpoints")[0] == 2
  assert names(tmp_path / "disk") == ["2"]


def lose_manifest(state):
  (state / "manifest.ocdbt").unlink()


def lose_values(state):
  largest = max(state.rglob("*"), key=lambda path: path.stat().st_size)
  os.truncate(largest, 100)


def change_values(state):
  largest = max(state.rglob("*"), key=lambda path: path.stat().st_size)
  with largest.open("r+b") as data:
    data.seek(largest.stat().st_size // 2)
    data.write(b"\xff")


@pytest.mark.parametrize(
  ("harm", "first_only"), [(lose_manifest, False), (lose_values, False), (change_values, True)]
)
def test_a_save_that_cannot_be_read_is_an_error(tmp_path, monkeypatch, caplog, harm, first_only):
  finish = ocp.AsyncCheckpointer.wait_until_finished

  def wait_and_harm(self):
    finish(self)
    for state in tmp_path.glob("checkpoints/*/state"):
      if state.parent.name in harmed:
        harm(state)

  monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", wait_and_harm)
  harmed = {"1"}
  opened = Checkpoints(epath.Path(tmp_path / "checkpoints"), keep=2)
  opened.save(1, STATE, {})
  with pytest.raises(CheckpointError, match=r"step 1 could not be written: it cannot be read back"):
    opened.wait()
  assert names(tmp_path / "checkpoints") == []
  harmed = {"3"}
  opened.save(2, STATE, {})
  opened.save(3, STATE, {})
  if first_only:
    opened.wait()
  else:
    with pytest.raises(CheckpointError, match=r"cannot be read back .* whole one is of step 2"):
      opened.wait()
  opened.close()
