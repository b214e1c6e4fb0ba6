"""Corpora: splits, preparation once, preflight, and no TensorFlow."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import re
import subprocess
import sys

import pytest

from egad_jax.data import corpus, corpus_reading, python_docs
from egad_jax.data.conversations import Renderer
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


_CHATS = [
  {
    "messages": [
      {"role": "user", "content": f"question number {i}"},
      {"role": "assistant", "content": f"answer {i * i} to it"},
    ]
  }
  for i in range(60)
]


def _write_records(path, records) -> str:
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return str(path)


def test_chats_are_rendered_once_and_stored_as_spans(tmp_path, smollm2):
  source = _write_records(tmp_path / "a.jsonl", _CHATS)
  prepared = corpus.prepare_corpus(
    source, tmp_path / "cache", held_out_fraction=0.2, renderer=smollm2.conversation_renderer
  )
  assert prepared.formats == {source: "messages"}
  for split in corpus.SPLITS:
    for document in prepared.documents(split):
      [number] = re.findall(r"question number (\d+)<", document[0].text)
      targets = [span.text for span in document if span.is_target]
      assert targets == [f"answer {int(number) ** 2} to it<|im_end|>"]


def test_another_template_is_another_corpus(tmp_path, smollm2):
  source = _write_records(tmp_path / "a.jsonl", _CHATS)
  made = [
    corpus.prepare_corpus(
      source,
      tmp_path / "cache",
      held_out_fraction=0.2,
      renderer=lambda text=text: Renderer(smollm2.chat_template + text, {}, ()),
    )
    for text in ("", "!")
  ]
  assert made[0].fingerprint != made[1].fingerprint
  assert made[0].directory != made[1].directory


@pytest.mark.parametrize(
  ("records", "template", "message"),
  [
    (_CHATS, None, "format messages need a chat template, and the tokenizer has none"),
    (
      [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": _CHATS[0]["messages"]}],
      None,
      "line 2: a conversation, and the tokenizer has no chat template",
    ),
    (_CHATS, "{{ raise_exception('never') }}", r"line 1: .*cannot render it: never\. It is bad"),
  ],
)
def test_templates_that_are_missing_or_raise(tmp_path, records, template, message):
  source = _write_records(tmp_path / "a.jsonl", records)
  renderer = Renderer(template, {}, ()) if template else None
  with pytest.raises(InputError, match=message):
    corpus.prepare_corpus(
      source, tmp_path / "cache", held_out_fraction=0.2, renderer=lambda: renderer
    )
  # Nothing unfinished is left of an input that is refused.
  assert not list((tmp_path / "cache").glob(".egad*"))


def test_alpaca_without_a_chat_template(tmp_path, smollm2, caplog):
  """Token by token: the template is context, the output and the end of the document are targets."""
  records = [
    {"instruction": f"Add 1 to {i}.", "input": "", "output": f"{i + 1} is the sum."}
    for i in range(40)
  ]
  source = _write_records(tmp_path / "a.jsonl", records)
  with caplog.at_level("INFO"):
    prepared = corpus.prepare_corpus(source, tmp_path / "cache", held_out_fraction=0.2)
  assert "rendered by the template of Alpaca" in caplog.text
  assert prepared.formats == {source: "alpaca"}
  numbers = []
  for document in itertools.chain.from_iterable(map(prepared.documents, corpus.SPLITS)):
    [encoded] = smollm2.encode_documents([document], with_bytes=False)
    [number] = map(int, re.findall(r"Instruction:\nAdd 1 to (\d+)\.\n", document[0].text))
    numbers.append(number)
    output = [*smollm2.encode(f"{number + 1} is the sum."), smollm2.document_end_id]
    assert encoded.ids[-len(output) :].tolist() == output
    assert encoded.targets.tolist() == [0] * (len(encoded.ids) - len(output)) + [1] * len(output)
    context = smollm2.decode(encoded.ids[: -len(output)].tolist())
    assert context.endswith(f"Add 1 to {number}.\n\n### Response:\n")
  assert sorted(numbers) == list(range(40))


def test_a_source_of_held_out_documents(tmp_path, texts):
  source = _write(tmp_path / "a.jsonl", texts[:50])
  held_out = _write(tmp_path / "b.jsonl", texts[50:60])
  prepared = corpus.prepare_corpus(
    source, tmp_path / "cache", held_out_fraction=0.2, held_out_source=held_out
  )
  assert sorted(prepared.texts("train")) == sorted(texts[:50])
  assert sorted(prepared.texts("held_out")) == sorted(texts[50:60])


def test_weights_repeat_or_choose_train_documents(tmp_path, texts):
  first, second = texts[:100], texts[100:]
  sources = (_write(tmp_path / "a.jsonl", first) + "*2.5", _write(tmp_path / "b.jsonl", second))
  sources = (sources[0], sources[1] + "*0.5")
  prepared = corpus.prepare_corpus(sources, tmp_path / "cache", held_out_fraction=0.2)
  held_out, train = list(prepared.texts("held_out")), collections.Counter(prepared.texts("train"))
  assert len(set(held_out)) == len(held_out)
  assert not set(held_out) & set(train)
  counts = [[train[text] for text in group if text not in held_out] for group in (first, second)]
  assert set(counts[0]) == {2, 3}
  assert set(counts[1]) == {0, 1}
  assert 2.35 < sum(counts[0]) / len(counts[0]) < 2.65
  assert 0.35 < sum(counts[1]) / len(counts[1]) < 0.65


def test_near_duplicates_are_counted(tmp_path, caplog):
  words = [f"w{i}" for i in range(4000)]
  texts = [" ".join(words[i * 40 : i * 40 + 40]) for i in range(100)]
  # The texts differ in one of 36 runs of five words, so 35 of all 37 runs are in common.
  near = [f"{text} again" for text in texts[:7]]
  far = [" ".join(reversed(text.split())) for text in texts[7:50]]
  prepared = corpus.prepare_corpus(
    _write(tmp_path / "a.jsonl", [*near, *far]),
    tmp_path / "cache",
    held_out_fraction=0.5,
    held_out_source=_write(tmp_path / "b.jsonl", texts),
  )
  found = prepared.near_duplicates
  assert (found["near_duplicates"], found["compared"], found["held_out"]) == (7, 50, 100)
  assert all(two.startswith(one[:20]) for one, two in found["examples"])
  assert "7 of 50 train documents that were compared are near-duplicates" in caplog.text


def _interrupted(monkeypatch, module, name, after):
  """Makes a function raise KeyboardInterrupt when it is called for the n-th time."""
  calls, real = itertools.count(1), getattr(module, name)

  def interrupted(*args, **kwargs):
    if next(calls) == after:
      raise KeyboardInterrupt
    return real(*args, **kwargs)

  monkeypatch.setattr(module, name, interrupted)


@pytest.mark.parametrize("after", [30, 150, 190])
def test_an_interrupted_preparation_goes_on(tmp_path, texts, monkeypatch, after):
  monkeypatch.setattr(corpus_reading, "_NOTED_EVERY", 40)
  monkeypatch.setattr(corpus_reading, "_TOGETHER", 16)
  for name, part in (("a", texts[:150]), ("b", texts[150:])):
    _write(tmp_path / f"{name}.jsonl", part)
    with (tmp_path / f"{name}.jsonl").open("a") as file:
      file.write("{\n" + json.dumps({"text": f"{name} behind it"}) + "\n{\n")
  prepare = lambda cache: corpus.prepare_corpus(
    f"{tmp_path}/*.jsonl", tmp_path / cache, held_out_fraction=0.2, max_bad_records=9
  )
  whole = prepare("whole")
  assert whole.num_bad_records == 4
  with monkeypatch.context() as patch:
    _interrupted(patch, corpus_reading, "position", after)
    with contextlib.suppress(KeyboardInterrupt):
      prepare("interrupted")
  read = []
  monkeypatch.setattr(
    corpus_reading,
    "position",
    lambda text, seed, real=corpus_reading.position: read.append(text) or real(text, seed),
  )
  again = prepare("interrupted")
  assert (again.fingerprint, again.num_bad_records) == (whole.fingerprint, 4)
  for split in corpus.SPLITS:
    assert list(again.texts(split)) == list(whole.texts(split))
  # At most what came behind the last note is done again.
  assert len(read) <= max(0, 202 - after) + 40 + 16
  assert not list((tmp_path / "interrupted").glob(".egad*"))
