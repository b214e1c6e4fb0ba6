"""The command line of the head's benchmark."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
  call = [sys.executable, "-m", "benchmarks.head", *arguments]
  return subprocess.run(
    call,
    check=False,
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    capture_output=True,
    text=True,
  )


def test_dry_run_says_what_would_be_done():
  done = _run("--dry_run", "--chips=v5p", "--contenders=egad,tunix")
  assert done.returncode == 0
  assert "heads egad, tunix" in done.stdout
  assert "table modelled: chips v5p, tokens 8192,32768" in done.stdout


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--contenders=egad,ligr", "--contenders: no ligr; there are egad,"),
    ("--chips=v4", "--chips: no v4"),
    ("--tables=all", "--tables: no all"),
    ("--tokens=8k", "--tokens must be positive integers; got 8k"),
    ("--measured_sizes=1,2,3", "--measured_sizes must be 4 integers; got 3"),
    ("--platform=gpu", "--platform=gpu is for --tables=measured,errors"),
  ],
)
def test_bad_flags_are_refused(flag, message):
  done = _run(flag, "--dry_run")
  assert done.returncode == 2
  assert message in done.stderr


def test_gpu_script_says_what_it_would_do():
  script = str(_ROOT / "benchmarks" / "gpu.sh")
  done = subprocess.run(["bash", script, "--dry_run"], capture_output=True, text=True, check=True)
  assert "-m benchmarks.head --platform=gpu --tables=measured,errors" in done.stdout
