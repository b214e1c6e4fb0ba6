"""What commands read besides their flags: the config that a run stored."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest
from etils import epath

from configs import default
from egad_jax import from_config
from egad_jax.durability import workdir
from egad_jax.errors import InputError
from launch import command_line

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path):
  path = epath.Path(tmp_path / "config.json")
  workdir.write_json(path, from_config.plain(default.get_config()))
  return path


def test_a_stored_config_comes_back(path):
  config = default.get_config()
  assert command_line.stored_config(path) == config
  assert command_line.stored_config(path).eval.prompts == config.eval.prompts


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"steps": "many"}, "steps must be of type int; got 'many'"),
    ({"steps": True}, "steps must be of type int; got True"),
    ({"steps": None}, "steps must be of type int; got None"),
    ({"trackers": 1}, "trackers must be of type tuple; got 1"),
    ({"loss": 3}, "exactly the keys of configs/default.py.*loss"),
    ({"loss": {}}, "exactly the keys of configs/default.py.*loss.ce_weight"),
    ({"method": {"a": {"b": 1}}}, "exactly the keys of configs/default.py.*method"),
    ({"trust_remote_code": True}, "exactly the keys.*trust_remote_code"),
  ],
)
def test_other_keys_and_types_are_refused(path, changes, message):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(InputError, match=message):
    command_line.stored_config(path)


def test_a_key_without_a_default_has_a_type_too(path):
  stored = json.loads(path.read_text())
  stored["branch"]["threshold"] = "high"
  path.write_text(json.dumps(stored))
  with pytest.raises(InputError, match=r"config\.json: "):
    command_line.stored_config(path)


def test_a_missing_config_is_named(tmp_path):
  with pytest.raises(InputError, match=r"config\.json: no such file"):
    command_line.stored_config(epath.Path(tmp_path / "config.json"))


def test_messages_are_one_line_without_control_characters():
  message = command_line.message(InputError("a\nb \x1b[31m\u202e" + "x" * 5000))
  assert message.startswith(r"a b \x1b[31m\u202exxx")
  assert len(message) < 2100


@pytest.mark.short_form(1)
@pytest.mark.parametrize(
  ("how", "code", "message"),
  [
    (">&-", 1, "run.py: standard output: Bad file descriptor\n"),
    (">/dev/full", 1, "run.py: standard output: No space left on device\n"),
    ("| true", 141, ""),
    ("2>&-", 0, ""),
  ],
)
def test_results_that_do_not_arrive_end_as_they_do_elsewhere(how, code, message):
  run = "launch/run.py --config=configs/tiny.py --print_config"
  script = f'"$0" {run} {how}; exit ${{PIPESTATUS[0]}}'
  if "|" in how:
    # Not before the reader has gone.
    script = f'(sleep 0.3; exec "$0" {run}) {how}; exit ${{PIPESTATUS[0]}}'
  done = subprocess.run(
    ["bash", "-c", script, sys.executable],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  # A slow machine tells what takes it long.
  told = [line for line in done.stderr.splitlines(True) if not re.match(r"\d\d:\d\d:\d\d ", line)]
  assert (done.returncode, "".join(told)) == (code, message)
