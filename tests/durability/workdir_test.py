"""Tests of the workdir: one process, one config, whole files, enough disk."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from egad_jax.durability import workdir as files
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError

CONFIG = {"steps": 10, "log_every": 1, "checkpoint": {"keep": 2}, "eval": {"prompts": ["a"]}}
# Takes the lock, tells so, and holds it until it is killed.
HOLDER = """
import sys, time
from egad_jax.durability.workdir import Workdir
workdir = Workdir(sys.argv[1])
print("open", flush=True)
time.sleep(600)
"""


@pytest.fixture
def workdir(tmp_path):
  with Workdir(tmp_path / "some" / "run") as workdir:
    yield workdir


def test_is_made_with_its_parents_and_leaves_no_trace_of_the_probe(workdir):
  assert workdir.path.is_dir()
  assert {path.name for path in workdir.path.iterdir()} <= {".lock", "egad_jax.json"}


def test_one_at_a_time(tmp_path):
  with (
    Workdir(tmp_path),
    pytest.raises(InputError, match=r"in use by another run.*choose another"),
  ):
    Workdir(tmp_path)
  Workdir(tmp_path).close()


def test_a_killed_process_frees_the_lock(tmp_path):
  command = [sys.executable, "-c", HOLDER, str(tmp_path)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
      assert process.stdout.readline() == "open\n"
      with pytest.raises(InputError, match="in use"):
        Workdir(tmp_path)
    finally:
      process.kill()
  Workdir(tmp_path).close()


def test_a_path_below_a_file_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match=r"file/run cannot be written: Not a directory"):
    Workdir(tmp_path / "file" / "run")


def test_a_directory_without_permission_is_refused(tmp_path):
  tmp_path.chmod(0o500)
  user = os.geteuid()
  try:
    if user == 0:  # Root writes anywhere, so be nobody for a moment.
      os.seteuid(65534)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
      Workdir(tmp_path / "run")
  finally:
    os.seteuid(user)
    tmp_path.chmod(0o700)


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
  """A directory without a free byte: a real small disk where one may be mounted."""
  small = tmp_path / "small"
  small.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
  if (
    os.geteuid() == 0
    and shutil.which("mount")
    and not subprocess.run(mount, capture_output=True, check=False).returncode
  ):
    try:
      with (small / "ballast").open("wb", 0) as file, contextlib.suppress(OSError):
        while True:
          file.write(bytes(4096))
      assert not shutil.disk_usage(small).free
      yield small
    finally:
      subprocess.run(["umount", str(small)], check=True)
    return

  def write_text(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(files, "write_text", write_text)
  yield small


def test_a_full_disk_is_refused(full_disk):
  with pytest.raises(InputError, match=r"cannot be written: No space left.*Free space there"):
    Workdir(full_disk)
  # The refused one holds no lock.
  (full_disk / "ballast").unlink(missing_ok=True)
  if os.path.ismount(full_disk):
    Workdir(full_disk).close()


def test_space_is_required_beyond_what_the_run_holds_already(workdir, monkeypatch):
  usage = shutil.disk_usage(workdir.path)._replace(free=2**20)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
  workdir.require_space(2**20)
  with pytest.raises(InputError, match=r"0\.00 GiB free.*need 3\.00 GiB.*checkpoint\.keep"):
    workdir.require_space(3 * 2**30)
  with pytest.raises(InputError, match="free space"):
    workdir.require_space(2**20 + 4096)
  step = pathlib.Path(workdir / files.CHECKPOINTS) / "5" / "state"
  step.mkdir(parents=True)
  (step / "arrays").write_bytes(bytes(4096))
  workdir.require_space(2**20 + 4096)
  with pytest.raises(InputError, match="free space"):
    workdir.require_space(2**20 + 4097)


def test_tilde_is_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  with Workdir("~/runs/a") as workdir:
    assert str(workdir.path) == str(tmp_path / "runs" / "a")
  assert not (tmp_path / "~").exists()


def snapshot(root):
  return {p: p.is_file() and p.read_bytes() for p in sorted(pathlib.Path(root).rglob("*"))}


@pytest.mark.parametrize(
  "name",
  [
    "config.json",
    "model.safetensors config.json",
    "summary.json",
    "report.html",
    "metrics.jsonl",
    "samples.json",
    "export/x",
    "checkpoints/999/x",
    "profile/x",
    "tensorboard/events",
    "egad_jax.json",
    "goodput.json",
    ".lock/x",
    "data",
  ],
)
def test_a_directory_with_files_of_others_becomes_no_workdir(tmp_path, name):
  for path in name.split():
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("{}")
  before = snapshot(tmp_path)
  word = name.split()[-1].split("/")[0]
  with pytest.raises(InputError, match=rf"no workdir of egad_jax.*{word}.*Nothing was touched"):
    Workdir(tmp_path)
  assert snapshot(tmp_path) == before


def test_other_files_and_places_made_ready_are_no_hindrance(tmp_path):
  (tmp_path / "run" / "data" / "mine").mkdir(parents=True)
  (tmp_path / "scratch" / "mine").mkdir(parents=True)
  (tmp_path / "run" / "checkpoints").mkdir()
  (tmp_path / "run" / "notes.txt").write_text("x")
  (tmp_path / "run" / ".writable").write_text("x")
  (tmp_path / "link").symlink_to(tmp_path / "run")
  before = snapshot(tmp_path / "run")
  with Workdir(tmp_path / "link") as workdir:
    workdir.require_ours()
  assert before.items() <= snapshot(tmp_path / "run").items()


def test_a_link_to_nowhere_and_a_place_inside_ours_are_refused(tmp_path):
  (tmp_path / "link").symlink_to(tmp_path / "nowhere")
  with pytest.raises(InputError, match="nowhere, which does not exist"):
    Workdir(tmp_path / "link")
  with Workdir(tmp_path / "run") as outer:
    for name in ("checkpoints/5", "data", "tensorboard/x"):
      with pytest.raises(InputError, match="keeps for itself"):
        Workdir(outer / name)
    Workdir(outer / "student-1").close()


def test_what_a_killed_run_left_half_written_goes_at_the_next_start(tmp_path):
  Workdir(tmp_path).close()
  for name in (".egad_jax-x.json.partial", ".egad_jax-probe", "report.html.partial", "x.partial"):
    (tmp_path / name).write_text("half")
  Workdir(tmp_path).close()
  assert {path.name for path in tmp_path.glob("*partial")} == {"report.html.partial", "x.partial"}
  assert not (tmp_path / ".egad_jax-probe").exists()


def test_files_of_the_run_may_be_replaced_and_removed(workdir):
  for value in (1, 2):
    workdir.write_json(files.SUMMARY, value)
    workdir.write_json(files.GOODPUT, value)
    workdir.require_ours()
  (workdir / files.METRICS).write_text('{"step": 1}\n{"step": 2}\n{"st')
  (workdir / files.SUMMARY).unlink()
  workdir.require_ours()


def test_a_kill_while_a_file_is_written_leaves_it_the_runs_own(workdir):
  workdir.write_json(files.SAMPLES, 1)

  def killed():
    with workdir.writing(files.SAMPLES):
      (workdir / files.SAMPLES).write_text("other")
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    killed()
  workdir.require_ours()


@pytest.mark.parametrize(
  ("name", "content", "word"),
  [
    ("report.html", "mine", "report.html"),
    ("summary.json", "{}", "summary.json"),
    ("passage.json", "[]", r"passage.json \(changed"),
    ("metrics.jsonl", "a,b\n1,2\n", "metrics.jsonl"),
    ("evaluations.jsonl", "[1]\n[2]\n", "evaluations.jsonl"),
    ("evaluations.jsonl/x", "", r"evaluations.jsonl \(no plain file"),
    ("tensorboard", "", r"tensorboard \(no directory"),
    ("profile", "", r"profile \(no directory"),
    ("export", "", r"export \(no directory"),
    ("export/notes", "", "export .*holds notes"),
    ("checkpoints/999/x", "", "checkpoints holds 999"),
    ("checkpoints/7", "", "checkpoints holds 7"),
    ("checkpoints/8.orbax-checkpoint-tmp/x", "", "checkpoints holds 8.orbax"),
    ("checkpoints/quarantine", "", "checkpoints holds quarantine"),
  ],
)
def test_what_others_put_into_a_workdir_is_named_and_stays(workdir, name, content, word):
  workdir.write_json(files.PASSAGE, 1)
  path = pathlib.Path(workdir / name)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content)
  before = snapshot(workdir.path)
  with pytest.raises(InputError, match=f"--workdir .*{word}"):
    workdir.require_ours()
  assert snapshot(workdir.path) == before


def test_a_link_in_place_of_a_file_is_not_written_over(workdir, tmp_path):
  (tmp_path / "mine").write_text("x")
  pathlib.Path(workdir / files.SUMMARY).symlink_to(tmp_path / "mine")
  with pytest.raises(InputError, match=r"summary\.json \(no plain file"):
    workdir.require_ours()


def test_object_stores_know_their_workdirs_too(bucket):
  with Workdir(bucket) as workdir:
    workdir.write_json(files.SUMMARY, 1)
    workdir.require_ours()
  with Workdir(bucket) as workdir:
    (workdir / files.REPORT).write_text("mine")
    with pytest.raises(InputError, match=r"report\.html"):
      workdir.require_ours()
  (bucket.parent / "other" / "config.json").write_text("{}")
  with pytest.raises(InputError, match="no workdir of egad_jax"):
    Workdir(bucket.parent / "other")


def test_any_config_may_start_and_the_same_may_go_on(workdir):
  workdir.check_config(CONFIG)
  workdir.store_config(CONFIG)
  assert files.read_json(workdir / files.CONFIG) == CONFIG
  workdir.check_config(CONFIG)


def test_another_config_is_refused_by_key_with_both_values(workdir):
  workdir.store_config(CONFIG)
  changed = CONFIG | {"steps": 20, "log_every": 5}
  with pytest.raises(InputError) as caught:
    workdir.check_config(changed)
  message = str(caught.value)
  assert "steps: 10 there, 20 now" in message
  assert "--force" in message
  assert "log_every" not in message, "harmless changes are not why"


def test_a_missing_and_a_new_key_are_changes(workdir):
  workdir.store_config(CONFIG)
  with pytest.raises(InputError, match=r"seed: None there, 3 now"):
    workdir.check_config(CONFIG | {"seed": 3})
  with pytest.raises(InputError, match=r"steps: 10 there, None now"):
    workdir.check_config({k: v for k, v in CONFIG.items() if k != "steps"})


def test_a_harmless_or_forced_change_goes_on_and_is_told(workdir, caplog):
  workdir.store_config(CONFIG)
  with caplog.at_level("WARNING", logger="egad_jax"):
    workdir.check_config(CONFIG | {"checkpoint": {"keep": 7}, "eval": {"prompts": ("b", "c")}})
  assert "checkpoint.keep: 2 there, 7 now" in caplog.text
  assert "eval.prompts: ['a'] there, ['b', 'c'] now" in caplog.text
  caplog.clear()
  with caplog.at_level("WARNING", logger="egad_jax"):
    workdir.check_config(CONFIG | {"steps": 20}, force=True)
  assert "steps: 10 there, 20 now" in caplog.text


def test_harmless_keys_are_keys_of_the_default_config():
  from configs import default

  assert files.flat(default.get_config().to_dict()).keys() >= files.HARMLESS_KEYS


def test_lists_and_tuples_are_the_same_config():
  assert files.changed_keys({"a": {"b": [1, 2]}}, {"a": {"b": (1, 2)}}) == []
  assert files.changed_keys({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "d": 2}) == ["a.b", "c", "d"]


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"{",
    b"[]",
    b"3",
    b"\xff",
    b"[" * 100_000,
    b"9" * 5000,
  ],
)
def test_a_damaged_config_is_named(workdir, content):
  (workdir / "config.json").write_bytes(content)
  with pytest.raises(InputError, match=r"config\.json must be the config of a run"):
    workdir.check_config({"steps": 1})


def test_a_file_of_that_name_that_is_not_ours_gets_a_neighbour(workdir):
  write = lambda name, text: (workdir / name).write_text(text)
  for expected in ("bad_batch_7.json", "bad_batch_7.json"):
    assert workdir.free_name("bad_batch_7.json") == expected
    with workdir.writing(expected):
      write(expected, "ours")
  write("bad_batch_7.json", "edited")
  assert workdir.free_name("bad_batch_7.json") == "bad_batch_7.1.json"
  write("bad_batch_7.1.json", "mine")
  assert workdir.free_name("bad_batch_7.json") == "bad_batch_7.2.json"
