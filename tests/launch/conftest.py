"""Fixtures of the launchers' tests, and of those of the train command: one run for all of them."""

from __future__ import annotations

import pytest

from tests.launch.fork_server import SERVER
from tests.launch.short_run import Train
from tests.launch.stand_ins import stand_ins


@pytest.fixture
def stubs(tmp_path):
  """A directory whose bin/ comes first on PATH, with stand-ins that note their calls in `calls`."""
  stand_ins(tmp_path)
  return tmp_path


@pytest.fixture(scope="session", autouse=True)
def _server():
  yield
  SERVER.close()


@pytest.fixture(scope="session")
def train(tmp_path_factory):
  return Train(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def finished(train, tmp_path_factory):
  """The workdir of a run that nothing interrupted; to be read, or copied."""
  workdir = tmp_path_factory.mktemp("finished") / "run"
  done = train(workdir)
  assert done.returncode == 0, done.stderr
  return workdir
