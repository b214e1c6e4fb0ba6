"""Runs of several processes: the same numbers as of one, ended together, resumed by one."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from tests.faults.runs import Job, lines
from tests.launch.fork_server import SERVER

STEPS = 8
FLAGS = (f"--config.steps={STEPS}", "--config.checkpoint.every_steps=4", "--config.log_every=1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
  """The losses of one process with one device."""
  workdir = tmp_path_factory.mktemp("alone") / "run"
  assert Job(workdir, cache, *FLAGS, server=SERVER).wait() == [0]
  return losses(workdir)


def losses(workdir):
  records = lines(workdir / "metrics.jsonl")
  assert [r["step"] for r in records] == list(range(1, STEPS + 1))
  return [r["loss"] for r in records]


# The next test has two, of two devices.
@pytest.mark.slow
def test_four_processes_train_as_one_does(cache, alone, tmp_path):
  job = Job(tmp_path / "run", cache, *FLAGS, processes=4, server=SERVER)
  assert job.wait() == [0] * 4, job.text()
  np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=1e-5)
  assert (tmp_path / "run" / "export" / "model.safetensors").exists()
  # What all would say alike is said once.
  assert "step 8/8" in job.text()
  assert "step 8/8" not in job.text(1)


@pytest.mark.slow
def test_a_signal_to_one_of_two_ends_both_and_one_alone_goes_on(cache, alone, tmp_path):
  mesh = "--config.mesh.tensor=2"
  job = Job(tmp_path / "run", cache, *FLAGS, mesh, processes=2, devices=2, server=SERVER)
  job.wait_for("step 2/8")
  job.send(signal.SIGTERM, to=[1])
  assert job.wait() == [75, 75], job.text()
  saved = max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
  assert 2 <= saved <= STEPS
  assert Job(tmp_path / "run", cache, *FLAGS, server=SERVER).wait() == [0]
  np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=1e-5)


def test_bad_input_of_one_is_said_by_all(cache, tmp_path):
  job = Job(tmp_path / "run", cache, "--config.batch_size=9", processes=2, server=SERVER)
  assert job.wait() == [2, 2]
  for index in range(2):
    assert "must divide config.batch_size" in job.text(index)


@pytest.mark.slow
def test_a_process_with_another_config_ends_all_before_anything_is_written(cache, tmp_path):
  job = Job(tmp_path / "run", cache, *FLAGS, processes=2, last=["--config.seed=7"])
  assert job.wait() == [2, 2]
  for index in range(2):
    assert "config.seed must be the same for all processes" in job.text(index)
    assert "0 for process 0 and 7 for process 1" in job.text(index)
  assert not (tmp_path / "run").exists()
  # One that would be refused alone does not leave the other waiting.
  job = Job(tmp_path / "other", cache, *FLAGS, processes=2, last=["--config.batch_size=0"])
  assert job.wait() == [2, 2]
  for index in range(2):
    assert "config.batch_size" in job.text(index)
