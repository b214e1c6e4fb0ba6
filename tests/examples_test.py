"""The examples run as a user would run them, and do what they say."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "losses_from_plain_jax.py"


# In `make test` only the snippets of the README run.
@pytest.mark.slow
def test_losses_from_plain_jax():
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  result = subprocess.run(
    [sys.executable, str(EXAMPLE)],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    env=environment,
  )
  assert result.returncode == 0, result.stderr
  found = re.findall(r"^(\S+) +forward KL ([\d.]+) nats", result.stdout, re.MULTILINE)
  values = {name: float(value) for name, value in found}
  assert values["in-batch"] < 0.5 * values["before"], result.stdout
  assert values["running"] < 0.5 * values["before"], result.stdout


def test_example_needs_jax_alone():
  imports = re.findall(r"^(?:import|from) (\w+)", EXAMPLE.read_text(), re.MULTILINE)
  assert set(imports) == {"__future__", "functools", "jax", "egad_jax"}


def test_snippets_of_the_readme_run(capsys):
  blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
  ours = [block for block in blocks if "egad_jax" in block]
  assert len(ours) == 2
  for block in ours:
    exec(compile(block, "README.md", "exec"), {})
    assert all("nan" not in word for word in capsys.readouterr().out.split())
