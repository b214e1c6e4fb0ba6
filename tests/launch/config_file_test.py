"""Config files: presets by name, and errors that name file and line."""

from __future__ import annotations

import json
import re

import pytest

from configs import tiny
from egad_jax.errors import InputError
from launch import command_line, config_file

BEGINNING = "from configs import default\ndef get_config():\n  config = default.get_config()\n"
BROKEN = {
  "syntax": ("def get_config(:\n", r"mine\.py, line 1: .*syntax"),
  "import": ("import json\nimport no_such_module\n", r"mine\.py, line 2: .*no_such_module"),
  "name": ("\n\nx = undefined\n", r"mine\.py, line 3: NameError: name 'undefined'"),
  "inside get_config": (BEGINNING + "  1 / 0\n", r"mine\.py, line 4: ZeroDivisionError"),
  "misspelt key": (BEGINNING + "  config.stepz = 3\n", r'mine\.py, line 4: .*stepz.*"steps"'),
  "wrong type": (BEGINNING + "  config.steps = 'many'\n", r"mine\.py, line 4: .*steps"),
  "no get_config": ("steps = 3\n", r"mine\.py must define get_config\(\)"),
  "get_config is no function": ("get_config = 3\n", r"mine\.py must define get_config\(\)"),
  "get_config takes arguments": ("def get_config(size): pass\n", r"mine\.py: TypeError.*size"),
  "forgotten return": (BEGINNING, r"mine\.py: .*returned None\. Does it end with `return config`"),
  "a dict": ("def get_config(): return {'steps': 3}\n", r"mine\.py: .*returned a dict"),
  "exits": ("import sys\nsys.exit('no')\n", r"mine\.py, line 2: SystemExit: no"),
  "null byte": ("x = 1\0\n", r"mine\.py"),
  "keys of its own": (
    "import ml_collections\nfrom configs import default\ndef get_config():\n"
    "  config = default.get_config().unlock()\n  config.batchsize = 3\n  return config\n",
    r"mine\.py must have exactly the keys .* batchsize \(did you mean batch_size\?\)",
  ),
  "keys missing": (
    "import ml_collections\ndef get_config(): return ml_collections.ConfigDict({'steps': 3})\n",
    r"mine\.py must have exactly the keys .* lacks .*default\.get_config",
  ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_error_in_a_config_names_file_and_line(tmp_path, name):
  text, message = BROKEN[name]
  path = tmp_path / "mine.py"
  path.write_text(text.replace(".unlock()", "\n  config.unlock()"))
  with pytest.raises(InputError) as raised:
    config_file.load(str(path))
  told = command_line.message(raised.value)
  assert re.search(message, told), told
  assert len(told) < 400
  # Nothing is left beside the user's file.
  assert [entry.name for entry in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize("name", ["tiny", "tiny.py", "configs/tiny.py"])
def test_a_preset_is_found_by_name(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  assert config_file.load(name) == tiny.get_config()


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "tiny.py").write_text(BEGINNING + "  config.steps = 7\n  return config\n")
  assert config_file.load("tiny.py").steps == 7
  assert config_file.load("tiny").steps == tiny.get_config().steps


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("configs/nope.py", ("no such file", "quickstart, ", "tiny")),
    ("tinny", ("Did you mean tiny?",)),
    ("", ("quickstart",)),
    (".", ("is a directory",)),
  ],
)
def test_what_is_not_there_names_the_presets_that_are(name, words):
  with pytest.raises(InputError) as raised:
    config_file.load(name)
  assert all(word in str(raised.value) for word in words)


def test_a_printed_and_a_stored_config_are_configs(tmp_path):
  config = tiny.get_config()
  config.eval.prompts = ("é: [x]", "- no")
  printed, stored = tmp_path / "mine.yaml", tmp_path / "config.json"
  printed.write_text(config_file.as_yaml(config), encoding="utf-8")
  stored.write_text(json.dumps(config.to_dict()))
  assert config_file.load(str(printed)) == config
  assert config_file.load(str(stored)) == config


@pytest.mark.parametrize("text", ["- a list", "steps: [", "steps: many", "{}", "3: 4", "\x00"])
def test_other_yaml_is_refused(tmp_path, text):
  path = tmp_path / "mine.yaml"
  path.write_text(text)
  with pytest.raises(InputError, match=r"mine\.yaml"):
    config_file.load(str(path))
