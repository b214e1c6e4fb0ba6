"""Fixtures of the launchers' tests."""

from __future__ import annotations

import pytest

from tests.launch.fork_server import SERVER
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
