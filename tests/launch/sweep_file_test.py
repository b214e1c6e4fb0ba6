"""Reading a sweep's file: the config of each student, and the lines that are refused."""

from __future__ import annotations

import json

import pytest

from configs import tiny
from egad_jax import from_config
from egad_jax.durability.workdir import flat
from egad_jax.errors import InputError
from launch import sweep_file


@pytest.fixture
def read(tmp_path):
  """`(*lines)`: reads a file of these lines, which are texts or JSON values."""
  path = tmp_path / "students.jsonl"

  def read(*lines):
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(line + "\n" for line in text))
    return sweep_file.read(str(path), tiny.get_config())

  return read


def test_a_student_has_the_config_with_its_changes(read):
  changes = {
    "config.loss.ce_weight": 1,
    "config.student.layer_indices": [0, 2],
    "config.branch.hard_logits": False,
  }
  base, changed = read({"name": "base"}, "", {"name": "changed-1.0"} | changes)
  assert base.config.to_dict() == tiny.get_config().to_dict()
  assert (changed.name, changed.changes) == ("changed-1.0", changes)
  expected = flat(tiny.get_config().to_dict())
  expected |= {key.removeprefix("config."): value for key, value in changes.items()}
  assert flat(changed.config.to_dict()) == expected
  assert isinstance(changed.config.loss.ce_weight, float)
  assert changed.config.student.layer_indices == (0, 2)


NAMES = ("../a", "a/b", "..", ".", ".hidden", "", "a b", "-a", "ä", "data", "Sweep.HTML", 7, None)
BAD = {
  **{f"name {name!r}": ([{"name": name}], r"line 1 must have a \"name\"") for name in NAMES},
  "no name": ([{}], r"line 1 must have a \"name\""),
  "a name too long": ([{"name": "a" * 101}], "1 to 100 letters"),
  "a name twice": ([{"name": "a"}, {"name": "b"}, {"name": "A"}], "line 3.*line 1 has it too"),
  "a key twice": (['{"name": "a", "name": "b"}'], "line 1 .*a key is there twice"),
  "no JSON": ([{"name": "a"}, "name: b"], "line 2 must be a JSON object"),
  "a list": (["[1]"], "must be a JSON object; it is a list"),
  "no student": (["", "  "], "must have a line for each student.*it has none"),
  "unknown key": (
    [{"name": "a", "config.loss.ce_wight": 1.0}],
    r"line 1 \(a\): there is no key config\.loss\.ce_wight.*Did you mean config\.loss\.ce_weight",
  ),
  "key without config": ([{"name": "a", "loss.ce_weight": 1.0}], r"mean config\.loss\.ce_weight"),
  "group": ([{"name": "a", "config.loss": {"ce_weight": 1.0}}], r"no key config\.loss"),
  "type": ([{"name": "a", "config.steps": 2.5}], r"line 1 \(a\): steps must be of type int"),
  "shared": (
    [{"name": "a", "config.seed": 1, "config.teacher.dtype": "bfloat16", "config.steps": 3}],
    r"line 1 \(a\) changes config\.seed \(the order of the data\), config\.teacher\.dtype "
    r"\(the teacher\), which all students of a sweep share.*a run of its own",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_its_line(case, read):
  lines, message = BAD[case]
  with pytest.raises(InputError, match=message):
    read(*lines)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"--sweep: .*nowhere\.jsonl cannot be read"):
    sweep_file.read(str(tmp_path / "nowhere.jsonl"), tiny.get_config())


SHARED = [
  "seed",
  "batch_size",
  "seq_len",
  "accumulation",
  "attention",
  "compilation_cache",
  "trackers",
  "compiler_options",
  "student.tokenizer",
  "eval.rows",
  "eval.batch_size",
]
GROUPS = ("teacher.", "data.", "mesh.", "watchdog.", "profile.")


@pytest.mark.parametrize("key", flat(tiny.get_config().to_dict()))
def test_each_key_is_shared_or_free(key):
  if key in SHARED or key.startswith(GROUPS):
    with pytest.raises(InputError, match=f"config.{key} "):
      from_config.check_shared("line 1", [key])
  else:
    from_config.check_shared("line 1", [key])


def test_trackers_that_follow_one_run_are_refused():
  config = tiny.get_config()
  from_config.check_sweep(config)
  config.trackers = ("tensorboard", "wandb")
  with pytest.raises(InputError, match=r"config\.trackers \(wandb\) must be tensorboard or \(\)"):
    from_config.check_sweep(config)
