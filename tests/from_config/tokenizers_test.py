"""From a config to the tokenizers of student and teacher, and which pairs are refused."""

from __future__ import annotations

import json
import logging

import jax
import numpy as np
import pytest

from egad_jax import from_config
from egad_jax.data.batches import PairedBatch
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.training.compiled_run import CompiledRun
from tests.models import tiny_llama


@pytest.fixture(scope="module")
def build_one(small, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("workdir")
  return lambda **values: from_config.build(small(**values), workdir, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Directories of two tokenizers, by their number of entries."""
  root = tmp_path_factory.mktemp("tokenizers")
  for size in (260, 265):
    Tokenizer.train(["some text, some more text"] * 4, size).save(root / str(size))
  return {size: str(root / str(size)) for size in (260, 265)}


def test_the_student_has_the_teachers_tokenizer_unless_told(build_one):
  run = build_one()
  assert run.tokenizers.student is run.tokenizers.teacher
  assert run.rows.sides == 1


def test_the_same_tokenizer_by_another_way_is_one(build_one, saved):
  run = build_one(data__tokenizer=saved[265], student__tokenizer=saved[265])
  assert run.tokenizers.student is run.tokenizers.teacher


def test_a_student_of_x_token_has_its_own_tokenizer_and_vocabulary(build_one):
  run = build_one(method="x_token", student__tokenizer="train:262")
  assert (run.tokenizers.student.vocab_size, run.tokenizers.teacher.vocab_size) == (262, 270)
  pair = run.models
  assert (pair.student.config.vocab_size, pair.teacher.config.vocab_size) == (262, 270)
  assert run.rows.sides == 2
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), run.abstract_batch())
  batch = next(CompiledRun(run).train_batches(0, lambda: None))
  assert isinstance(batch, PairedBatch)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == shapes
  assert np.asarray(batch.student.labels).max() < 262
  assert np.asarray(batch.teacher.labels).max() >= 262


@pytest.fixture(scope="module")
def with_beginning(saved, tmp_path_factory):
  """The tokenizer of 265 entries again, which puts its one special token in front of a text."""
  directory = tmp_path_factory.mktemp("beginning")
  Tokenizer.from_directory(saved[265]).save(directory)
  path = directory / "tokenizer_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": True}))
  return str(directory)


def test_one_vocabulary_split_in_two_ways_is_the_teachers_and_that_is_said(
  build_one, saved, with_beginning, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("egad_jax"), "propagate", True)
  run = build_one(data__tokenizer=saved[265], student__tokenizer=with_beginning)
  assert run.tokenizers.student is run.tokenizers.teacher
  assert run.tokenizers.student.prefix_ids == ()
  assert "has the teacher's vocabulary, but differs in: tokens around a text" in caplog.text


@pytest.fixture(scope="module")
def with_added_tokens(saved, tmp_path_factory):
  """The tokenizer of 265 entries with two added tokens more, as a later release of a family has."""
  directory = tmp_path_factory.mktemp("added")
  Tokenizer.from_directory(saved[265]).save(directory)
  path = directory / "tokenizer.json"
  data = json.loads(path.read_text())
  for index, text in enumerate(("<tool_call>", "</tool_call>"), 265):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    data["added_tokens"].append({"id": index, "content": text} | flags)
  path.write_text(json.dumps(data))
  return str(directory)


def test_a_student_may_lack_added_tokens_of_the_teacher(
  build_one, saved, with_added_tokens, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger("egad_jax"), "propagate", True)
  run = build_one(data__tokenizer=with_added_tokens, student__tokenizer=saved[265])
  assert run.tokenizers.student is run.tokenizers.teacher
  assert run.tokenizers.student.vocab_size == 267
  assert "lacks 2 added tokens of the teacher's (<tool_call>, </tool_call>)" in caplog.text


def test_a_teacher_may_not_lack_tokens_of_the_student(build_one, saved, with_added_tokens):
  for teacher, student in ((saved[265], with_added_tokens), (saved[265], saved[260])):
    with pytest.raises(InputError, match=r"is not the teacher's \(265 .*config\.method=x_token"):
      build_one(data__tokenizer=teacher, student__tokenizer=student)


def test_models_of_one_family_with_other_padding_share_a_tokenizer(build_one, saved, tmp_path):
  """As Qwen2.5's 151,936 and 152,064 rows of one tokenizer."""
  for name, rows in (("teacher", 272), ("student", 268)):
    directory = tiny_llama.make(tmp_path / name, tiny_llama.tensors(rows=rows), vocab_size=rows)
    for stale in directory.glob("token*"):
      stale.unlink()
    Tokenizer.from_directory(saved[265]).save(directory)
  run = build_one(
    teacher__source=str(tmp_path / "teacher"),
    data__tokenizer="",
    student__init="source",
    student__source=str(tmp_path / "student"),
  )
  assert run.tokenizers.student is run.tokenizers.teacher
  assert (run.models.student.config.vocab_size, run.models.teacher.config.vocab_size) == (268, 272)


def test_x_token_splits_one_vocabulary_in_two_ways(build_one, saved, with_beginning):
  run = build_one(method="x_token", data__tokenizer=saved[265], student__tokenizer=with_beginning)
  assert (run.tokenizers.student.prefix_ids, run.tokenizers.teacher.prefix_ids) == ((0,), ())
  assert run.rows.sides == 2


def test_x_token_with_one_tokenizer_for_both(build_one):
  run = build_one(method="x_token")
  assert run.tokenizers.student is run.tokenizers.teacher
  assert run.rows.sides == 2


def test_a_student_source_of_x_token_brings_its_tokenizer(build_one, saved, monkeypatch):
  # Its weights are another matter: what is asked for is recorded.
  asked = {}

  def load(source, *, tokenizer_size, grow):
    asked[source] = tokenizer_size
    raise InputError("no weights")

  monkeypatch.setattr("egad_jax.from_config.models.load_pretrained", load)
  with pytest.raises(InputError, match="no weights"):
    build_one(
      method="x_token",
      data__tokenizer=saved[265],
      student__init="source",
      student__source=saved[260],
    )
  assert asked == {saved[260]: 260}


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"student__tokenizer": "train:262"},
      r"config\.student\.tokenizer \(train:262, 262 entries\) is not the teacher's \(270 entries\)"
      r", but config\.method=egad .*; use config\.method=x_token, or a student of",
    ),
    (
      {"method": "x_token", "student__tokenizer": "train:262", "student__init": "layers"},
      r"student\.tokenizer \(train:262.*student\.init=layers would.*student\.init=random or source",
    ),
    (
      {"method": "x_token", "student__tokenizer": "train:few"},
      r"config\.student\.tokenizer must be train:N with a number N; got 'train:few'",
    ),
    (
      {"method": "x_token", "student__tokenizer": "nowhere"},
      r"nowhere",
    ),
    (
      {"method": "x_token", "method_options__x_token__kind": "kl"},
      r"config\.method_options\.x_token: kind must be one of p_kl, h_kl, uld, got 'kl'",
    ),
  ],
)
def test_what_is_refused(build_one, values, message):
  with pytest.raises(InputError, match=message):
    build_one(**values)
