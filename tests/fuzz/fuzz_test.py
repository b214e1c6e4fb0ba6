"""A few hundred damaged inputs; `python -m tests.fuzz` reads thousands, under limits of memory."""

from __future__ import annotations

import contextlib
import json

import pytest

from tests.fuzz import case, header_mutations, seeds
from tests.fuzz.formats import FORMATS, Format

# Fewer cases for formats that start a process for each input.
_COUNTS = {"chat template": 6, "JSONL and text": 20, "overrides": 30}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> seeds.Seeds:
  return seeds.make_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(autouse=True)
def _no_warnings_from_damage():
  # Only here: elsewhere a warning is an error.
  import warnings

  with warnings.catch_warnings(action="ignore"):
    yield


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_accepted_or_refused(whole, name):
  for index in range(_COUNTS.get(name, 50)):
    result = case.run_case(name, 1, index, whole)
    assert result.outcome != "bug", f"{name}, case {index}: {result.detail}"


def test_what_is_whole_is_accepted(whole, tmp_path):
  read = {name: FORMATS[name].read for name in FORMATS}
  for i, data in enumerate(whole.gguf):
    (tmp_path / f"g{i}").mkdir()
    (tmp_path / f"g{i}" / "a.gguf").write_bytes(data)
    read["GGUF"](tmp_path / f"g{i}", None)
  for name, directories in (
    ("safetensors", whole.safetensors),
    ("tokenizer.json", whole.tokenizers),
  ):
    for i, files in enumerate(directories):
      path = tmp_path / f"{name}{i}" / "model"
      path.mkdir(parents=True)
      for file, data in files.items():
        (path / file).write_bytes(data)
      read[name](path.parent, None)
  for template in seeds.TEMPLATES:
    with contextlib.suppress(case.InputError):  # One wants roles to alternate.
      read["chat template"](tmp_path, template)


def test_a_case_is_the_same_every_time(whole, tmp_path):
  import random

  made = []
  for i in range(2):
    (tmp_path / str(i)).mkdir()
    FORMATS["GGUF"].write(tmp_path / str(i), random.Random("0/GGUF/5"), whole)
    made.append((tmp_path / str(i) / "a.gguf").read_bytes())
  assert made[0] == made[1]
  assert made[0] not in whole.gguf


def test_headers_are_taken_apart_whole(whole):
  for data in whole.gguf:
    chunks, rest = header_mutations.gguf_chunks(data)
    assert b"".join(chunks) + rest == data
    assert b"llama.block_count" in chunks
    assert b"blk.1.attn_q.weight" in chunks


@pytest.mark.parametrize(
  "error", [KeyError("x"), MemoryError(), RecursionError(), AssertionError("wrong result")]
)
def test_any_other_error_is_a_bug(monkeypatch, whole, error):
  def read(directory, given):
    raise error

  monkeypatch.setitem(FORMATS, "GGUF", Format(1, lambda *_: None, read))
  result = case.run_case("GGUF", 0, 0, whole)
  assert result.outcome == "bug"
  assert type(error).__name__ in result.detail


def test_memory_and_time_are_measured(monkeypatch, whole):
  def read(directory, given):
    json.dumps([bytearray(b"x" * 2**26).count(b"y")])

  monkeypatch.setattr(case, "MAX_BYTES", 2**25)
  monkeypatch.setitem(FORMATS, "GGUF", Format(1, lambda *_: None, read))
  result = case.run_case("GGUF", 0, 0, whole)
  assert result.outcome == "bug"
  assert result.memory > 2**26
