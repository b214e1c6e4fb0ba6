"""Real processes of the train command: killed, started again, refused, finished."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import time

import filelock
import pytest

from tests.faults.runs import difference
from tests.launch.fork_server import SERVER
from tests.launch.stand_ins import messages

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 20
KEYS = [
  *("step", "epoch", "loss", "distillation_loss", "feature_loss", "cross_entropy"),
  *("teacher_entropy", "student_entropy", "temperature_mean", "temperature_min"),
  *("temperature_max", "curriculum_progress", "weight_mean", "hard_fraction", "hard_overflow"),
  *("grad_norm", "learning_rate", "tokens", "tokens_per_second", "step_seconds"),
  *("mfu", "teacher_mfu", "student_mfu", "memory_bytes", "memory_peak_bytes"),
  *("skipped", "skipped_total"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """A directory of prepared data and compiled programs, for all runs here."""
  return tmp_path_factory.mktemp("shared")


def command(shared, workdir, *flags):
  return [
    *("launch/run.py", f"--config={ROOT}/configs/tiny.py"),
    *(f"--workdir={workdir}", f"--config.data.cache={shared}/data"),
    *(f"--config.compilation_cache={shared}/programs", "--config.eval.sample_tokens=0", *flags),
  ]


def run(shared, workdir, *flags):
  return SERVER.run(*command(shared, workdir, *flags))


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def uninterrupted(shared, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
  done = run(shared, workdir)
  assert done.returncode == 0, done.stderr
  return workdir


def test_leaves_the_files_of_the_contract(uninterrupted):
  names = {path.name for path in uninterrupted.iterdir()}
  assert names >= {
    *("config.json", "metrics.jsonl", "evaluations.jsonl", "checkpoints", "export"),
    *("report.html", "summary.json", "tensorboard"),
  }
  metrics = lines(uninterrupted / "metrics.jsonl")
  assert [record["step"] for record in metrics] == list(range(1, STEPS + 1))
  assert all(list(record) == KEYS for record in metrics)
  evaluations = lines(uninterrupted / "evaluations.jsonl")
  assert [record["step"] for record in evaluations] == [0, 10, 20]
  assert evaluations[-1]["student"]["forward_kl"] < evaluations[0]["student"]["forward_kl"]
  summary = json.loads((uninterrupted / "summary.json").read_text())
  assert summary["student_after"]["forward_kl"] == evaluations[-1]["student"]["forward_kl"]
  assert metrics[-1]["hard_fraction"] > 0.3, "the hard branch must be at work"


@pytest.mark.parametrize("kill_at", [pytest.param(2, marks=pytest.mark.slow), 13])
def test_killed_and_started_again_is_bit_identical(shared, uninterrupted, tmp_path, kill_at):
  workdir = tmp_path / "run"
  process = SERVER.start(*command(shared, workdir))
  deadline = time.monotonic() + 240
  while len(lines(workdir / "metrics.jsonl")) < kill_at and process.poll() is None:
    assert time.monotonic() < deadline, "the run never came to the step of the kill"
    time.sleep(0.002)
  os.killpg(process.pid, signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
  assert not (workdir / "summary.json").exists()

  again = run(shared, workdir)
  assert again.returncode == 0, again.stderr
  assert not difference(uninterrupted, workdir, STEPS)


def test_a_finished_run_is_a_no_op(shared, uninterrupted):
  before = (uninterrupted / "report.html").stat().st_mtime_ns
  done = run(shared, uninterrupted)
  assert (done.returncode, "finished" in done.stdout) == (0, True)
  assert (uninterrupted / "report.html").stat().st_mtime_ns == before


def assert_refused(done, *words):
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  assert len(messages(done.stderr)) == 1, done.stderr
  for word in words:
    assert word in done.stderr


def test_a_workdir_of_another_config_is_refused(shared, uninterrupted):
  done = run(shared, uninterrupted, "--config.optimizer.learning_rate=0.5")
  assert_refused(done, "optimizer.learning_rate", "0.5", "--force")


def test_a_workdir_in_use_is_refused(shared, tmp_path):
  with filelock.FileLock(tmp_path / ".lock"):
    assert_refused(run(shared, tmp_path), "in use")


BAD = {
  "misspelt key": (["--config.stepz=3"], ["stepz", "steps"]),
  "wrong type": (["--config.steps=many"], ["steps", "many"]),
  "unknown flag": (["--wrkdir=x"], ["wrkdir"]),
  "unknown choice": (["--config.loss.divergence=kl"], ["loss.divergence", "forward_kl"]),
  "missing file": (
    ["--config.teacher.source=nowhere.gguf", "--config.data.tokenizer="],
    ["nowhere.gguf"],
  ),
  "mesh": (["--config.mesh.fsdp=3"], ["mesh", "3"]),
  "too long": (["--config.seq_len=1024"], ["seq_len", "512"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_config_is_one_message_and_exit_code_2(shared, tmp_path, name):
  flags, words = BAD[name]
  assert_refused(run(shared, tmp_path / "run", *flags), *words)


def test_bad_files_are_one_message_and_exit_code_2(shared, tmp_path):
  teacher = tmp_path / "cut.gguf"
  teacher.write_bytes(b"GGUF" + bytes(20))
  flags = [f"--config.teacher.source={teacher}", "--config.data.tokenizer="]
  assert_refused(run(shared, tmp_path / "a", *flags), "cut.gguf")
  text = tmp_path / "text.jsonl"
  text.write_text('{"text": "whole"}\n{"text": "broken\n')
  flags = [f"--config.data.source={text}"]
  assert_refused(run(shared, tmp_path / "b", *flags), "text.jsonl", "2", "max_bad_records")
  text.write_text("")
  assert_refused(run(shared, tmp_path / "c", *flags), "text.jsonl")


def test_a_workdir_that_cannot_be_made_is_refused(shared, tmp_path):
  (tmp_path / "file").write_text("")
  assert_refused(run(shared, tmp_path / "file" / "run"), "--workdir", "cannot be written")
