"""Corpora: splits, preparation once, preflight, and no TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from egad_jax.data import corpus, python_docs
from egad_jax.errors import InputError


def _texts_of(prepared: corpus.Corpus, split: str) -> list[str]:
  return list(prepared.texts(split))


def _write(path, texts) -> str:
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return str(path)


def test_every_document_is_in_one_split(small_corpus, texts):
  train, held_out = (_texts_of(small_corpus, split) for split in corpus.SPLITS)
  assert sorted(train + held_out) == sorted(texts)
  assert not set(train) & set(held_out)
  assert small_corpus.num_documents == {"train": len(train), "held_out": len(held_out)}
  assert small_corpus.num_characters["train"] == sum(map(len, train))
  assert 20 <= len(held_out) <= 60


def test_copies_stay_together_whatever_else_there_is(small_corpus, texts, tmp_path):
  copies = [f"  {text.replace(' ', '  ')}\n" for text in texts]
  source = _write(tmp_path / "a.jsonl", [*reversed(copies), *texts, "one more"])
  prepared = corpus.prepare_corpus(source, tmp_path / "cache", held_out_fraction=0.2)
  held_out = {" ".join(text.split()) for text in _texts_of(prepared, "held_out")}
  before = {" ".join(text.split()) for text in _texts_of(small_corpus, "held_out")}
  assert held_out - {"one more"} == before
  assert prepared.num_documents["held_out"] >= 2 * len(before)


def test_prepared_once_and_named_by_what_it_depends_on(tmp_path, texts, monkeypatch):
  source = _write(tmp_path / "a.jsonl", texts)

  def prepare(**changes):
    return corpus.prepare_corpus(source, tmp_path / "cache", **{"held_out_fraction": 0.2} | changes)

  first = prepare()
  monkeypatch.setattr(corpus, "_write", lambda *_: pytest.fail("prepared twice"))
  assert prepare() == first
  monkeypatch.undo()
  assert prepare(seed=1).fingerprint != first.fingerprint
  assert prepare(held_out_fraction=0.5).fingerprint != first.fingerprint
  # Same size, other content: told by the time of the change.
  _write(tmp_path / "a.jsonl", [texts[0].upper(), *texts[1:]])
  changed = prepare()
  assert changed.fingerprint != first.fingerprint
  _write(tmp_path / "a.jsonl", texts)
  again = prepare()
  assert (again.fingerprint, again.directory != first.directory) == (first.fingerprint, True)


def test_bad_records_are_counted_or_refused(tmp_path, texts):
  file = tmp_path / "a.jsonl"
  _write(file, texts)
  file.write_text(file.read_text() + "{\n")
  with pytest.raises(InputError, match=r"a\.jsonl, line 201: not valid JSON"):
    corpus.prepare_corpus(str(file), tmp_path / "cache", held_out_fraction=0.2)
  prepared = corpus.prepare_corpus(
    str(file), tmp_path / "cache", held_out_fraction=0.2, max_bad_records=1
  )
  assert prepared.num_bad_records == 1
  assert sum(prepared.num_documents.values()) == len(texts)
  with pytest.raises(InputError, match="line 201"):
    corpus.prepare_corpus(str(file), tmp_path / "cache", held_out_fraction=0.2)


@pytest.mark.parametrize(
  ("content", "changes", "message"),
  [
    ("", {}, "no documents in it"),
    ('{"text": " "}\n', {}, "no documents in it"),
    ("{\n", {"max_bad_records": 5}, r"no documents in it \(1 bad"),
    ('{"text": "alone"}\n', {"held_out_fraction": 1e-9}, "1 documents leave the held_out split"),
    ('{"text": "alone"}\n', {"held_out_fraction": 1 - 1e-9}, "leave the train split empty"),
    ('{"text": "alone"}\n', {"held_out_fraction": 0.0}, "must lie between 0 and 1"),
    ('{"text": "alone"}\n', {"held_out_fraction": 1.0}, "must lie between 0 and 1"),
  ],
)
def test_corpora_without_two_splits_are_refused(tmp_path, content, changes, message):
  file = tmp_path / "a.jsonl"
  file.write_text(content)
  with pytest.raises(InputError, match=message):
    corpus.prepare_corpus(
      str(file), tmp_path / "cache", **{"held_out_fraction": 0.5, "max_bad_records": 0} | changes
    )


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest.json"])
def test_damage_is_found_on_opening(tmp_path, texts, damage):
  source = _write(tmp_path / "a.jsonl", texts)
  prepared = corpus.prepare_corpus(source, tmp_path / "cache", held_out_fraction=0.2)
  name = damage if damage.endswith("json") else prepared.shards["held_out"][0]["file"]
  path = prepared.directory / name
  data = path.read_bytes()
  path.unlink()
  if damage == "truncate":
    path.write_bytes(data[: len(data) // 2])
  with pytest.raises(InputError) as caught:
    corpus.prepare_corpus(source, tmp_path / "cache", held_out_fraction=0.2)
  assert str(path) in str(caught.value)
  assert f"Delete the directory {prepared.directory} and run again" in str(caught.value)


def test_built_in_corpus_is_read_by_name(tmp_path, monkeypatch):
  library = tmp_path / "library"
  library.mkdir()
  for i in range(40):
    (library / f"m{i}.py").write_text(f'"""Module number {i}."""\n')
  monkeypatch.setattr(python_docs.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
  prepared = corpus.prepare_corpus("python_docs", tmp_path / "cache", held_out_fraction=0.3)
  everything = [text for split in corpus.SPLITS for text in _texts_of(prepared, split)]
  assert sorted(everything) == sorted(f"module m{i}\n\nModule number {i}.\n" for i in range(40))


_WITHOUT_TENSORFLOW = """
import sys
from egad_jax.data import corpus, packing, pipeline
from egad_jax.data.tokenizer import Tokenizer
prepared = corpus.prepare_corpus(sys.argv[1], sys.argv[2], held_out_fraction=0.2)
rows = packing.prepare_rows(prepared, Tokenizer.train(["a"], 257), seq_len=8, directory=sys.argv[2])
next(pipeline.train_batches(rows, batch_size=2, seed=0))
print(sorted({"tensorflow", "torch"} & set(sys.modules)))
"""


def test_data_loads_no_tensorflow_and_prints_nothing(tmp_path, texts):
  source = _write(tmp_path / "a.jsonl", texts)
  command = [sys.executable, "-c", _WITHOUT_TENSORFLOW, source, str(tmp_path / "cache")]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout == "[]\n"
