"""The examples run as a user would run them, and do what they say."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from egad_jax.errors import InputError
from examples.extending import (
  batch_source,
  divergence,
  method,
  teacher_source,
  top_k_teacher,
  tracker,
)
from examples.extending.short_run import short_run

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


EXTENDED = {
  "divergence": (divergence, {"loss__divergence": "jeffreys"}),
  "method": (method, {"method": "sure_tokens"}),
  "teacher_source": (teacher_source, {"method": "vanilla_kd"}),
  "top_k_teacher": (top_k_teacher, {}),
  "batch_source": (batch_source, {}),
  "tracker": (tracker, {"trackers": ("printer",), "log_every": 1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTENDED)
def test_a_run_with_something_of_ones_own_learns(name, tmp_path, capsys):
  module, changes = EXTENDED[name]
  for i in range(40):
    (tmp_path / f"{i}.txt").write_text(f"Document {i} says that {i} and {i} make {2 * i}. " * 4)
  small = {
    "data__source": str(tmp_path),
    "data__held_out_fraction": 0.2,
    "data__tokenizer": "train:270",
    "batch_size": 8,
    "seq_len": 32,
    "student__remat": "none",
    "compilation_cache": "",
    "optimizer__learning_rate": 3e-3,
    # Extensions need none of the mechanisms, which take long to compile.
    "curriculum__kind": "uniform",
    "temperature__kind": "fixed",
    "branch__weight": 0.0,
  }
  summary = short_run(module.EXTENSIONS, **small | changes)
  assert summary["method"] == changes.get("method", "egad")
  assert summary["student_after"]["forward_kl"] < summary["student_before"]["forward_kl"]
  if name == "tracker":
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in told] == [f"step {i}" for i in (0, 1, 2, 3, 4, 4)]


def test_a_name_without_its_extension_is_refused():
  with pytest.raises(InputError, match=r"config\.loss\.divergence must be one of .*got 'jeffreys'"):
    short_run(method.EXTENSIONS, loss__divergence="jeffreys")
