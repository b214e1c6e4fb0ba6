"""Checkpoints that are damaged, do not fit, cannot be written, or have to go."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import pathlib
import shutil
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egad_jax.durability import checkpoints as module
from egad_jax.durability import restoring
from egad_jax.durability.checkpoints import CheckpointError, Checkpoints
from egad_jax.durability.restoring import restore_state
from egad_jax.errors import InputError
from tests.faults.damage import damage_cases, falls_back

NAME = module.__name__


def make_state(step, rows=16):
  mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
  random = np.random.default_rng(step)
  return {
    "step": place(np.int32(step)),
    "params": {
      "kernel": place(random.standard_normal((rows, 8), np.float32), "a", "b"),
      "scale": place(jax.numpy.asarray(random.standard_normal(8), jax.numpy.bfloat16), "b"),
    },
    "flags": place(random.random(8) < 0.5, "a"),
  }


def like(state):
  return restoring.abstract(state, jax.tree.map(lambda x: x.sharding, state))


LIKE = like(make_state(0))


def assert_state(state, step):
  jax.tree.map(np.testing.assert_array_equal, state, make_state(step))


def write(directory, *steps, **options):
  written = Checkpoints(epath.Path(directory), keep=9, **options)
  for step in steps:
    written.save(step, make_state(step), {"tokens": 10 * step})
  written.wait()
  written.close()


def restore(directory, like=LIKE):
  opened = Checkpoints(epath.Path(directory))
  try:
    return opened.restore_latest(like)
  finally:
    opened.close()


@pytest.fixture(scope="module", autouse=True)
def _frozen():
  """A collection follows each damage; it need not walk through jax, and all tests before, again."""
  gc.freeze()
  yield
  gc.unfreeze()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp("saved") / "checkpoints"
  write(directory, 10, 20)
  return directory


@pytest.fixture
def copy(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_restores_what_was_saved(copy):
  step, state, meta = restore(copy)
  assert (step, meta) == (20, {"tokens": 200})
  assert_state(state, 20)
  assert state["params"]["kernel"].sharding == LIKE["params"]["kernel"].sharding


def test_nothing_was_ever_saved(tmp_path):
  assert restore(tmp_path / "checkpoints") is None


def restored_step(directory):
  step, state, meta = restore(directory)
  assert_state(state, step)
  assert meta == {"tokens": 10 * step}
  return step


def test_any_damage_leads_to_the_right_values_or_to_the_step_before(saved, tmp_path):
  cases = list(damage_cases(saved / "20"))
  assert len(cases) > 60
  fell = {
    str(case): falls_back(saved, tmp_path / "checkpoints", case, restored_step) for case in cases
  }
  assert all(fell[case] for case in fell if "meta/metadata" in case)
  assert any(fell[case] for case in fell if "state/" in case)


def damage_values(directory, step):
  """Values that Orbax reads happily, under the record of others."""
  shutil.rmtree(directory / str(step) / "state")
  shutil.copytree(directory / "10" / "state", directory / str(step) / "state")


def test_whole_files_with_other_values_are_damage(copy, caplog):
  damage_values(copy, 20)
  step, state, _ = restore(copy)
  assert step == 10
  assert_state(state, 10)
  assert "step 20 is damaged (" in caplog.text
  assert "has changed since it was saved" in caplog.text


def test_a_renamed_step_is_damage(copy):
  (copy / "20").rename(copy / "30")
  assert restore(copy)[0] == 10


@pytest.mark.parametrize("item", ["state", "meta", "."])
def test_a_missing_item_is_damage(copy, item):
  shutil.rmtree(copy / "20" / item)
  (copy / "20").mkdir(exist_ok=True)
  assert restore(copy)[0] == 10
  assert names(copy / "quarantine") == ["20"]


def test_training_goes_on_after_falling_back(copy):
  damage_values(copy, 20)
  for expected in (["20"], ["20", "20.1"]):
    opened = Checkpoints(epath.Path(copy), keep=2)
    assert opened.restore_latest(LIKE)[0] == 10
    opened.save(20, make_state(20), {"tokens": 200})
    opened.wait()
    opened.close()
    assert names(copy / "quarantine") == expected
    assert restore(copy)[0] == 20
    damage_values(copy, 20)


def test_never_starts_again_by_itself(copy):
  for step in (10, 20):
    (copy / str(step) / "meta" / "metadata").write_text("{}")
  for _ in range(2):
    with pytest.raises(InputError, match=r"none of them is whole.*quarantine.*delete"):
      restore(copy)
  assert names(copy) == ["quarantine"]


def test_unfinished_saves_are_cleaned_without_a_word(copy, caplog):
  shutil.copytree(copy / "20", copy / "30.orbax-checkpoint-tmp")
  assert restore(copy)[0] == 20
  assert names(copy) == ["10", "20"]
  assert "WARNING" not in [entry.levelname for entry in caplog.records]


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda s: s["params"].update(kernel=make_state(0, 32)["params"]["kernel"]), "32,8.*16,8"),
    (lambda s: s.update(step=s["step"].astype(np.float32)), r"step must be float32\[\].*int32"),
    (lambda s: s.update(extra=s["step"]), "extra must be int32.*absent"),
    (lambda s: s.pop("flags"), "flags must be absent and is bool"),
  ],
)
def test_a_config_that_does_not_fit_is_refused_and_nothing_moved(copy, monkeypatch, change, words):
  state = make_state(0)
  change(state)
  read = lambda *_, **__: pytest.fail("the arrays were read")
  monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", read)
  with pytest.raises(InputError, match=f"step 20 does not fit the config: .*{words}"):
    restore(copy, like(state))
  assert names(copy) == ["10", "20"]


def test_another_format_is_refused_and_nothing_moved(tmp_path, monkeypatch):
  monkeypatch.setattr(restoring, "_FORMAT", 7)
  write(tmp_path / "checkpoints", 10)
  monkeypatch.undo()
  with pytest.raises(InputError, match="has format 7, this version reads 1"):
    restore(tmp_path / "checkpoints")


def test_an_error_of_the_devices_is_not_damage(copy, monkeypatch):
  def exhausted(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", exhausted)
  with pytest.raises(jax.errors.JaxRuntimeError):
    restore(copy)
  assert names(copy) == ["10", "20"]


def test_reading_only_verifies_and_moves_nothing(copy, caplog):
  workdir = epath.Path(copy.parent)
  step, state = restore_state(workdir, None, LIKE)
  assert step == 20
  damage_values(copy, 20)
  step, state = restore_state(workdir, None, LIKE)
  assert step == 10
  assert_state(state, 10)
  assert "step 20 is damaged" in caplog.text
  assert caplog.text.strip().endswith("falling back to step 10")
  with pytest.raises(InputError, match=r"step 20 is damaged \(.*choose another of \[10, 20\]"):
    restore_state(workdir, 20, LIKE)
  assert restore_state(workdir, 10, LIKE)[0] == 10
  (copy / "10" / "meta" / "metadata").unlink()
  with pytest.raises(InputError, match="no whole checkpoint"):
    restore_state(workdir, None, LIKE)
  assert names(copy) == ["10", "20"]


def test_keeps_the_latest_and_the_best(tmp_path):
  kls = {1: 3.0, 2: 1.0, 3: float("nan"), 4: None, 5: 2.0, 6: None}
  for keep_best, expected in ((True, ["2", "5", "6"]), (False, ["5", "6"])):
    directory = tmp_path / str(keep_best)
    opened = Checkpoints(epath.Path(directory), keep=2, keep_best=keep_best)
    for step, kl in kls.items():
      metrics = None if kl is None else {"forward_kl": kl}
      opened.save(step, make_state(step), {"tokens": 10 * step}, metrics)
    opened.wait()
    assert names(directory) == expected
    opened.close()
    assert restore(directory)[0] == 6


def test_the_best_is_known_after_a_restart(tmp_path):
  for step, kl in ((1, 1.0), (2, 2.0), (3, 3.0)):
    opened = Checkpoints(epath.Path(tmp_path), keep=1, keep_best=True)
    opened.save(step, make_state(step), {}, {"forward_kl": kl})
    opened.wait()
    opened.close()
  assert names(tmp_path) == ["1", "3"]


def test_a_step_that_is_there_stays(copy):
  opened = Checkpoints(epath.Path(copy), keep=2)
  opened.save(20, make_state(21), {})
  opened.wait()
  opened.close()
  assert_state(restore(copy)[1], 20)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MiB."""
  path = tmp_path / "disk"
  path.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(path)], capture_output=True, check=False
  )
  if mounted.returncode:
    pytest.skip("mounting is not permitted here")
  yield path
  subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk, free=0):
  """Fills a disk up to some bytes."""
  with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
    while file.write(bytes(4096)):
      pass
  os.truncate(disk / "ballast", max(0, (disk / "ballast").stat().st_size - free))


def await_failure(opened):
  deadline = time.monotonic() + 20
  while opened._writing is not None:
    assert opened.check() is False
    assert time.monotonic() < deadline
    time.sleep(0.001)


def test_a_full_disk_is_one_error_and_the_save_is_made_later(small_disk, caplog):
  directory = small_disk / "checkpoints"
  opened = Checkpoints(epath.Path(directory), keep=2, retry_seconds=0.2)
  opened.save(10, make_state(10), {"tokens": 100})
  opened.wait()
  fill(small_disk)
  opened.save(20, make_state(20), {"tokens": 200})
  await_failure(opened)
  errors = [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.ERROR]
  assert errors == [
    "checkpoint of step 20 could not be written: No space left on device (0.0 of 0.0 MiB); the "
    "last whole one is of step 10; trying again in 0.2 s"
  ]
  assert names(directory) == ["10"]
  assert opened.latest() == 10
  assert not opened.check()
  time.sleep(0.25)
  assert opened.check()
  opened.save(21, make_state(21), {"tokens": 210})
  await_failure(opened)
  (small_disk / "ballast").unlink()
  time.sleep(0.25)
  assert opened.check()
  opened.save(22, make_state(22), {"tokens": 220})
  assert not opened.check()
  opened.wait()
  assert not opened.check()
  opened.close()
  assert names(directory) == ["10", "22"]
  assert_state(restore(directory)[1], 22)


def without_looking_ahead(monkeypatch):
  """Another program fills the disk during the save."""
  monkeypatch.setattr(Checkpoints, "_lack_of_space", lambda *_: "")


@pytest.mark.parametrize("free", [0, 8_000, 300_000])
def test_a_disk_that_fills_up_during_a_save(small_disk, caplog, monkeypatch, free):
  directory = small_disk / "checkpoints"
  opened = Checkpoints(epath.Path(directory), keep=1, retry_seconds=0)
  opened.save(10, make_state(10), {"tokens": 100})
  opened.wait()
  fill(small_disk, free)
  without_looking_ahead(monkeypatch)
  opened.save(20, make_state(20, rows=2**15), {"tokens": 200})
  await_failure(opened)
  errors = [e.getMessage() for e in caplog.records if (e.name, e.levelname) == (NAME, "ERROR")]
  assert errors == [
    "checkpoint of step 20 could not be written: No space left on device; the last whole one is "
    "of step 10; trying again in 0 s"
  ]
  assert opened.check()
  (small_disk / "ballast").unlink()
  for step in (21, 22):
    opened.save(step, make_state(step), {"tokens": 10 * step})
    opened.wait()
  opened.close()
  assert names(directory) == ["22"]
  assert restored_step(directory) == 22


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_the_last_save_of_a_run_must_succeed(small_disk, monkeypatch, looks_ahead):
  directory = small_disk / "checkpoints"
  opened = Checkpoints(epath.Path(directory), keep=1)
  opened.save(10, make_state(10), {"tokens": 100})
  opened.wait()
  fill(small_disk)
  if not looks_ahead:
    without_looking_ahead(monkeypatch)
  opened.save(20, make_state(20), {"tokens": 200})
  message = r"step 20 could not be written: No space left.*; the last whole one is of step 10"
  with pytest.raises(CheckpointError, match=message) as raised:
    opened.wait()
  assert "\n" not in str(raised.value)
  opened.close()
  assert names(directory) == ["10"]


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch, caplog):
  def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")

  opened = Checkpoints(epath.Path(tmp_path), keep=1)
  monkeypatch.setattr(ocp.AsyncCheckpointer, "save", refuse)
  opened.save(10, make_state(10), {})
  assert "step 10 could not be written: Permission denied; there is none" in caplog.text
  monkeypatch.undo()
  opened.save(11, make_state(11), {})
  opened.wait()
  opened.close()
  assert names(tmp_path) == ["11"]


def test_checking_costs_nothing(tmp_path):
  opened = Checkpoints(epath.Path(tmp_path), keep=1)
  started = time.perf_counter()
  for _ in range(1000):
    opened.check()
  assert time.perf_counter() - started < 0.05
  opened.close()


def test_the_record_is_plain_json(saved):
  stored = json.loads((saved / "20" / "meta" / "metadata").read_text())
  record = json.loads(stored["record"])
  assert (record["format"], record["step"], record["meta"]) == (1, 20, {"tokens": 200})
  assert record["leaves"]["params/kernel"].keys() == {"shape", "dtype", "digest"}


def test_metadata_that_was_edited_is_damage(copy):
  path = copy / "20" / "meta" / "metadata"
  text = path.read_text()
  assert text.count("200") == 1
  path.write_text(text.replace("200", "201"))
  assert restored_step(copy) == 10
