"""Runs `profiling_cases` in a process without libtpu, beside which the profiler of CPUs crashes."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_traces():
  cases = "tests/training/profiling_cases.py"
  command = [sys.executable, "-m", "pytest", "-q", "-n", "0", cases]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout
  assert "passed" in done.stdout or "..." in done.stdout
