"""Real processes of the train command: killed, started again, refused, finished."""

from __future__ import annotations

import json
import os
import signal
import time

import filelock
import pytest

from tests.faults.runs import difference
from tests.launch.fork_server import SERVER
from tests.launch.short_run import ENVIRONMENT, STEPS
from tests.launch.stand_ins import messages

KEYS = [
  "step",
  "epoch",
  "loss",
  "distillation_loss",
  "feature_loss",
  "cross_entropy",
  "teacher_entropy",
  "student_entropy",
  "temperature_mean",
  "temperature_min",
  "temperature_max",
  "curriculum_progress",
  "weight_mean",
  "hard_fraction",
  "hard_overflow",
  "grad_norm",
  "learning_rate",
  "tokens",
  "tokens_per_second",
  "step_seconds",
  "mfu",
  "teacher_mfu",
  "student_mfu",
  "memory_bytes",
  "memory_peak_bytes",
  "skipped",
  "skipped_total",
]


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_leaves_the_files_of_the_contract(finished):
  names = {path.name for path in finished.iterdir()}
  assert names >= {
    "config.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "checkpoints",
    "export",
    "report.html",
    "summary.json",
    "tensorboard",
  }
  metrics = lines(finished / "metrics.jsonl")
  assert [record["step"] for record in metrics] == list(range(1, STEPS + 1))
  assert all(list(record) == KEYS for record in metrics)
  evaluations = lines(finished / "evaluations.jsonl")
  assert [record["step"] for record in evaluations] == [0, 4, 8]
  assert evaluations[-1]["student"]["forward_kl"] < evaluations[0]["student"]["forward_kl"]
  summary = json.loads((finished / "summary.json").read_text())
  assert summary["student_after"]["forward_kl"] == evaluations[-1]["student"]["forward_kl"]
  assert metrics[-1]["hard_fraction"] > 0.3, "the hard branch must be at work"


@pytest.mark.parametrize("kill_at", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_killed_and_started_again_is_bit_identical(train, finished, tmp_path, kill_at):
  workdir = tmp_path / "run"
  process = SERVER.start(*train.command(workdir), environment=ENVIRONMENT)
  deadline = time.monotonic() + 240
  while len(lines(workdir / "metrics.jsonl")) < kill_at and process.poll() is None:
    assert time.monotonic() < deadline, "the run never came to the step of the kill"
    time.sleep(0.002)
  os.killpg(process.pid, signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
  assert not (workdir / "summary.json").exists()

  again = train(workdir)
  assert again.returncode == 0, again.stderr
  assert not difference(finished, workdir, STEPS)


def test_a_finished_run_is_a_no_op(train, finished):
  before = (finished / "report.html").stat().st_mtime_ns
  done = train(finished)
  assert (done.returncode, "finished" in done.stdout) == (0, True)
  assert (finished / "report.html").stat().st_mtime_ns == before


def assert_refused(done, *words):
  assert done.returncode == 2, done.stderr
  assert "Traceback" not in done.stderr
  assert len(messages(done.stderr)) == 1, done.stderr
  for word in words:
    assert word in done.stderr


def test_a_workdir_of_another_config_is_refused(train, finished):
  done = train(finished, "--config.optimizer.learning_rate=0.5")
  assert_refused(done, "optimizer.learning_rate", "0.5", "--force")


def test_a_workdir_in_use_is_refused(train, tmp_path):
  with filelock.FileLock(tmp_path / ".lock"):
    assert_refused(train(tmp_path), "in use")


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


# All are refused in one place; `run_test` and the tests of `build` have others.
@pytest.mark.short_form(2)
@pytest.mark.parametrize("name", BAD)
def test_bad_config_is_one_message_and_exit_code_2(train, tmp_path, name):
  flags, words = BAD[name]
  assert_refused(train(tmp_path / "run", *flags), *words)


def test_bad_files_are_one_message_and_exit_code_2(train, tmp_path):
  teacher = tmp_path / "cut.gguf"
  teacher.write_bytes(b"GGUF" + bytes(20))
  flags = [f"--config.teacher.source={teacher}", "--config.data.tokenizer="]
  assert_refused(train(tmp_path / "a", *flags), "cut.gguf")
  text = tmp_path / "text.jsonl"
  text.write_text('{"text": "whole"}\n{"text": "broken\n')
  flags = [f"--config.data.source={text}"]
  assert_refused(train(tmp_path / "b", *flags), "text.jsonl", "2", "max_bad_records")
  text.write_text("")
  assert_refused(train(tmp_path / "c", *flags), "text.jsonl")


def test_a_workdir_that_cannot_be_made_is_refused(train, tmp_path):
  (tmp_path / "file").write_text("")
  assert_refused(train(tmp_path / "file" / "run"), "--workdir", "cannot be written")
