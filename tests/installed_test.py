"""An installed wheel has commands and presets, those of launch/ and configs/, everywhere."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.launch.stand_ins import messages

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What a build reads; built from a copy, so that it leaves nothing in the clone.
SOURCES = ("egad_jax", "launch", "configs", "pyproject.toml", "README.md", "LICENSE")
# The package in an environment of its own need not be installed for its console script to be tried.
EGAD = "import sys; sys.argv[0] = 'egad'; from egad_jax.__main__ import main; main()"


def test_every_package_is_named_for_the_wheel():
  setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
  found = {
    ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("egad_jax/**/__init__.py")
  }
  assert set(setuptools["packages"]) == found | {"egad_jax.launch", "egad_jax.configs"}
  assert setuptools["package-dir"] == {"egad_jax.launch": "launch", "egad_jax.configs": "configs"}


def egad(*arguments, cwd, path=ROOT):
  environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  return subprocess.run(
    [sys.executable, "-c", EGAD, *map(str, arguments)],
    cwd=cwd,
    env=environment | {"PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


# `tests/launch/config_file_test.py` tries names that are not those of presets.
@pytest.mark.short_form(1)
@pytest.mark.parametrize("name", ["tiny", "tiny.py", "configs/tiny.py"])
def test_presets_are_found_by_name_from_any_directory(tmp_path, name):
  done = egad("run", f"--config={name}", "--config.seed=7", "--print_config", cwd=tmp_path)
  assert (done.returncode, messages(done.stderr)) == (0, [])
  assert "seed: 7" in done.stdout


def test_what_is_no_command_or_preset_names_those_there_are(tmp_path):
  done = egad("rnu", cwd=tmp_path)
  assert (done.returncode, done.stdout) == (2, "")
  assert "run, sweep, plan, evaluate, export, generate" in done.stderr
  done = egad("run", "--config=tinny", "--workdir=x", cwd=tmp_path)
  assert (done.returncode, done.stdout) == (2, "")
  assert "Did you mean tiny?" in done.stderr
  assert "quickstart" in done.stderr


@pytest.mark.short_form(2)
@pytest.mark.parametrize("command", ["run", "sweep", "plan", "evaluate", "export", "generate"])
def test_help_shows_an_example_and_every_flag_at_once(tmp_path, command):
  done = egad(command, "--help", cwd=tmp_path)
  assert (done.returncode, done.stderr) == (0, "")
  first, _, example = done.stdout.splitlines()[:3]
  assert first.endswith(".")
  assert example.startswith(f"    python launch/{command}.py --")
  source = "".join((ROOT / "launch" / f"{command}.py").read_text().split())
  flags = re.findall(r'(?:DEFINE_\w+|required)\("(\w+)"', source)
  flags += ["config"] if "define_config" in source else []
  assert flags
  for flag in flags:
    # The flag is there, and more than its name is said of it.
    assert re.search(rf"^  --{flag}\b.*\n      \S+ \S+", done.stdout, re.MULTILINE), flag


def test_help_imports_no_jax(tmp_path):
  program = (
    "import sys; sys.argv = ['egad', 'run', '--help']\n"
    "from egad_jax.__main__ import main\n"
    "try: main()\nfinally: assert 'jax' not in sys.modules"
  )
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", program]
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
  assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_a_wheel_trains_from_another_directory(tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  for name in SOURCES:
    path = ROOT / name
    ignored = shutil.ignore_patterns("__pycache__")
    if path.is_dir():
      shutil.copytree(path, source / name, ignore=ignored)
    else:
      shutil.copy(path, source / name)
  for path in ROOT.glob("requirements*.txt"):
    shutil.copy(path, source)
  pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source]
  subprocess.run(pip, check=True, timeout=600)
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    archive.extractall(tmp_path / "installed")
  assert {"egad_jax/launch/run.py", "egad_jax/configs/tiny.py"} <= set(names)
  # No name of anybody else's is taken.
  assert {name.split("/")[0] for name in names} == {"egad_jax", "egad_jax-0.1.0.dist-info"}
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  (elsewhere / "mine.py").write_text(
    "from configs import tiny\n\n\ndef get_config():\n"
    "  config = tiny.get_config()\n  config.steps = 2\n  return config\n"
  )
  flags = ("--config=mine.py", "--workdir=run", "--config.eval.sample_tokens=0")
  done = egad("run", *flags, cwd=elsewhere, path=tmp_path / "installed")
  assert done.returncode == 0, done.stderr
  assert (elsewhere / "run" / "report.html").exists()
