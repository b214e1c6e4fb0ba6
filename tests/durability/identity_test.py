"""Fingerprints of what a run is made of, and what is said and kept when they change."""

from __future__ import annotations

import json

import numpy as np
import pytest

from egad_jax.durability import identity
from egad_jax.durability.workdir import Workdir
from egad_jax.errors import InputError

CONFIG = {"steps": 10, "optimizer": {"learning_rate": 0.1}, "log_every": 1}
FOUND = {
  **{"teacher_weights": "aa", "student_weights": "bb", "tokenizer": "cc"},
  **{"teacher_tokenizer": "cc", "chat_template": "dd", "data": "ee", "rows": "ff"},
  **{"code": "11", "versions": "jax 1"},
}


@pytest.fixture
def workdir(tmp_path):
  with Workdir(tmp_path) as opened:
    yield opened


@pytest.fixture
def begun(workdir):
  """A run that has saved step 4."""
  identity.store(workdir, identity.check(workdir, CONFIG, FOUND))
  workdir.store_config(CONFIG)
  (workdir / "checkpoints" / "4").mkdir(parents=True)
  return workdir


def params():
  rng = np.random.default_rng(0)
  return {
    "embedding": rng.normal(size=(7, 4)).astype(np.float32),
    "layers": {"w": rng.normal(size=(3, 4, 5)).astype(np.float32), "b": np.zeros(3, np.float16)},
  }


def _swap(tree):
  tree["layers"]["w"][[0, 1]] = tree["layers"]["w"][[1, 0]]


def _one_bit(tree):
  tree["layers"]["w"].view(np.uint8)[2, 3, 19] ^= 1


def _shape(tree):
  tree["embedding"] = tree["embedding"].reshape(4, 7)


def _dtype(tree):
  tree["layers"]["b"] = tree["layers"]["b"].astype(np.int16)


def _name(tree):
  tree["layers"]["c"] = tree["layers"].pop("b")


def _missing(tree):
  del tree["layers"]["b"]


def _negative_zero(tree):
  tree["layers"]["b"][1] = -0.0


@pytest.mark.parametrize("block", [2**26, 40, 16, 1])
@pytest.mark.parametrize(
  "change", [_swap, _one_bit, _shape, _dtype, _name, _missing, _negative_zero]
)
def test_any_change_of_weights_changes_their_fingerprint(change, block, monkeypatch):
  monkeypatch.setattr(identity, "_BLOCK", block)
  before = identity.weights_fingerprint(params())
  assert identity.weights_fingerprint(params()) == before
  changed = params()
  change(changed)
  assert identity.weights_fingerprint(changed) != before


def test_how_weights_lie_in_memory_changes_nothing():
  other = params()
  other["layers"]["w"] = np.asfortranarray(other["layers"]["w"])
  assert identity.weights_fingerprint(other) == identity.weights_fingerprint(params())


def test_the_same_goes_on_and_nothing_is_on_record(begun):
  identity.store(begun, identity.check(begun, CONFIG, FOUND))
  assert identity.read_changes(begun.path) == []
  assert identity.read_fingerprints(begun.path) == FOUND


@pytest.mark.parametrize("name", identity.INPUTS)
def test_another_input_is_refused_by_name_with_both_fingerprints(name, begun):
  before = (begun / identity.IDENTITY).read_text()
  with pytest.raises(InputError) as caught:
    identity.check(begun, CONFIG, FOUND | {name: "99"})
  message = str(caught.value)
  assert f"{identity.INPUTS[name]}: {FOUND[name]} there, 99 now" in message
  assert "--force" in message
  assert (begun / identity.IDENTITY).read_text() == before


def test_what_is_forced_is_told_and_stays_on_record_with_its_step(begun, caplog):
  changed = FOUND | {"teacher_weights": "99", "data": "98"}
  config = CONFIG | {"optimizer": {"learning_rate": 0.2}, "log_every": 5}
  for _ in range(2):  # A kill before config.json was written: the same is not noted twice.
    identity.store(begun, identity.check(begun, config, changed, force=True))
  assert "on record" in caplog.text
  assert "config.data.source): ee until step 4, then 98" in caplog.text
  found = identity.read_changes(begun.path)
  assert [(c.step, c.what, c.before, c.after, c.forced) for c in found] == [
    (4, "teacher_weights", "aa", "99", True),
    (4, "data", "ee", "98", True),
    (4, "config.optimizer.learning_rate", 0.1, 0.2, True),
  ]
  begun.store_config(config)
  # From here on the new ones are those of the run.
  identity.check(begun, config, changed)
  with pytest.raises(InputError, match="teacher's weights"):
    identity.check(begun, config, FOUND)


def test_other_code_goes_on_without_force_and_is_on_record(begun):
  identity.store(begun, identity.check(begun, CONFIG, FOUND | {"code": "22", "versions": "jax 2"}))
  found = identity.read_changes(begun.path)
  assert [(c.what, c.forced) for c in found] == [("code", False), ("versions", False)]


def test_the_students_first_weights_matter_until_there_is_a_checkpoint(begun):
  rest = {name: value for name, value in FOUND.items() if name != "student_weights"}
  identity.store(begun, identity.check(begun, CONFIG, rest))
  assert identity.read_fingerprints(begun.path)["student_weights"] == "bb"


def test_checkpoints_without_fingerprints_need_force_which_is_on_record(begun):
  (begun / identity.IDENTITY).unlink()
  with pytest.raises(InputError, match=r"checkpoints but no identity\.json.*--force"):
    identity.check(begun, CONFIG, FOUND)
  identity.store(begun, identity.check(begun, CONFIG, FOUND, force=True))
  (change,) = identity.read_changes(begun.path)
  assert (change.what, change.step, change.forced) == ("identity.json", 4, True)


@pytest.mark.parametrize(
  "text",
  [
    "{",
    "[]",
    "3",
    "{}",
    '{"format": 2, "fingerprints": {}, "changes": []}',
    "[" * 100_000,
    json.dumps({"format": 1, "fingerprints": [], "changes": []}),
    json.dumps({"format": 1, "fingerprints": {}, "changes": [{"step": 3}]}),
  ],
)
def test_a_damaged_file_is_named(begun, text):
  (begun / identity.IDENTITY).write_text(text)
  with pytest.raises(InputError, match=r"identity\.json must hold the fingerprints of a run"):
    identity.check(begun, CONFIG, FOUND, force=True)


def test_a_command_that_reads_a_checkpoint_needs_its_tokenizer_and_tells_the_rest(begun, caplog):
  changed = FOUND | {"data": "98", "teacher_weights": "97", "code": "22"}
  assert identity.require(begun.path, changed, identity.TOKENIZERS) == ["teacher_weights", "data"]
  assert "not what the checkpoint was trained with: the teacher's weights" in caplog.text
  for name in identity.TOKENIZERS:
    with pytest.raises(InputError, match="of a run with other inputs"):
      identity.require(begun.path, FOUND | {name: "99"}, identity.TOKENIZERS)


def test_a_checkpoint_of_unknown_inputs_is_called_that(begun, caplog):
  (begun / identity.IDENTITY).unlink()
  assert identity.require(begun.path, FOUND, identity.TOKENIZERS) is None
  assert "nobody can say what it was trained with" in caplog.text


def test_the_code_has_one_fingerprint_which_its_source_alone_decides():
  found = identity.code_fingerprints()
  assert found.keys() == identity.CODE.keys()
  assert "jax 0." in found["versions"]
