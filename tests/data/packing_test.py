"""Packing: each target once, documents whole, rows deterministic."""

from __future__ import annotations

import collections
import contextlib
import json

import jax
import numpy as np
import pytest

from egad_jax.data import corpus, packed_rows, packing, pipeline, shards
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError


def _segments(rows: packed_rows.Rows, split: str):
  """Yields (tokens, labels) of every segment, labels under the mask."""
  source = pipeline.RowSource(rows, split)
  for index in range(len(source)):
    row = source[index]
    for segment in range(1, row.segment_ids.max() + 1):
      inside = row.segment_ids == segment
      yield row.tokens[inside], row.labels[inside & row.mask], row.positions[inside]


@pytest.mark.parametrize("split", corpus.SPLITS)
def test_documents_are_reproduced_exactly(small_corpus, tokenizer, rows, split):
  wanted = collections.Counter(
    (*tokenizer.encode(text), tokenizer.document_end_id) for text in small_corpus.texts(split)
  )
  pieces = collections.Counter()
  for tokens, labels, positions in _segments(rows, split):
    np.testing.assert_array_equal(positions, np.arange(len(tokens)))
    # A segment that fills its row has its last token as a label only.
    np.testing.assert_array_equal(tokens[1:], labels[: len(tokens) - 1])
    pieces[(int(tokens[0]), *labels.tolist())] += 1
  expected = collections.Counter()
  for document, count in wanted.items():
    for start in range(0, len(document) - 1, rows.seq_len):
      expected[document[start : start + rows.seq_len + 1]] += count
  assert pieces == expected
  targets = sum((len(document) - 1) * count for document, count in wanted.items())
  assert sum((len(piece) - 1) * count for piece, count in pieces.items()) == targets
  assert rows.num_targets[split] == targets


def test_text_can_be_read_back_from_the_rows(small_corpus, tokenizer, tmp_path):
  longest = 1 + max(len(tokenizer.encode(text)) for text in small_corpus.texts("train"))
  rows = packing.prepare_rows(small_corpus, tokenizer, seq_len=longest, directory=tmp_path)
  found = [
    tokenizer.decode([tokens[0], *labels], skip_special=True)
    for tokens, labels, _ in _segments(rows, "train")
  ]
  wanted = list(small_corpus.texts("train"))
  assert sorted(found) == sorted(wanted)


def test_rows_are_well_filled(rows):
  assert rows.utilization > 0.85
  assert rows.num_rows["train"] == rows.train_size == len(pipeline.RowSource(rows, "train"))
  assert rows.num_rows["held_out"] == rows.held_out_size
  assert rows.lost_bytes == {"train": 0, "held_out": 0}


def test_packing_is_deterministic_and_done_once(
  small_corpus, tokenizer, rows, tmp_path, monkeypatch
):
  again = packing.prepare_rows(small_corpus, tokenizer, seq_len=32, directory=tmp_path)
  assert again.fingerprint == rows.fingerprint
  for split in corpus.SPLITS:
    ours, theirs = (pipeline.RowSource(one, split) for one in (rows, again))
    for index in range(len(ours)):
      jax.tree.map(np.testing.assert_array_equal, ours[index], theirs[index])
  monkeypatch.setattr(packing, "_pack_split", lambda *_: pytest.fail("packed twice"))
  assert packing.prepare_rows(small_corpus, tokenizer, seq_len=32, directory=tmp_path) == again


def test_fingerprint_depends_on_length_and_tokenizer(small_corpus, tokenizer, texts, tmp_path):
  other = Tokenizer.train(texts, vocab_size=290)
  fingerprints = {
    packing.prepare_rows(small_corpus, one, seq_len=length, directory=tmp_path).fingerprint
    for one in (tokenizer, other)
    for length in (16, 17)
  }
  assert len(fingerprints) == 4


def test_shortest_rows(small_corpus, tokenizer, tmp_path):
  rows = packing.prepare_rows(small_corpus, tokenizer, seq_len=1, directory=tmp_path)
  assert rows.num_rows == rows.num_targets
  assert rows.utilization == 1.0


def test_documents_end_with_the_pretraining_separator(smollm2, small_corpus, tmp_path):
  rows = packing.prepare_rows(small_corpus, smollm2, seq_len=128, directory=tmp_path)
  ends = [labels[-1] for _, labels, _ in _segments(rows, "held_out")]
  assert ends.count(smollm2.document_end_id) == small_corpus.num_documents["held_out"]
  assert smollm2.eos_id not in ends


def test_bytes_without_a_token_are_counted(smollm2, tmp_path):
  (tmp_path / "a.jsonl").write_text(
    "".join(f'{{"text": "n{i} \\u0004\\u0006"}}\n' for i in range(50))
  )
  prepared = corpus.prepare_corpus(
    str(tmp_path / "a.jsonl"), tmp_path / "cache", held_out_fraction=0.3
  )
  rows = packing.prepare_rows(prepared, smollm2, seq_len=8, directory=tmp_path / "cache")
  assert rows.lost_bytes["train"] == 2 * prepared.num_documents["train"]


@pytest.mark.parametrize(
  ("length", "pieces"), [(1, []), (2, [2]), (5, [5]), (6, [5, 2]), (9, [5, 5]), (10, [5, 5, 2])]
)
def test_pieces_overlap_by_one_and_none_is_without_target(length, pieces):
  ids = list(range(length))
  found = packing.cut(ids, 4)
  assert [len(piece) for piece in found] == pieces
  assert [target for piece in found for target in piece[1:].tolist()] == ids[1:]


def test_a_length_without_targets_is_refused(small_corpus, tokenizer, tmp_path):
  with pytest.raises(InputError, match=r"seq_len \(0\) must be at least 1"):
    packing.prepare_rows(small_corpus, tokenizer, seq_len=0, directory=tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_damage_is_found_on_opening(small_corpus, tokenizer, tmp_path, damage):
  rows = packing.prepare_rows(small_corpus, tokenizer, seq_len=32, directory=tmp_path)
  path = rows.directory / "manifest.json" if damage == "manifest" else rows.files["train"][0]
  data = path.read_bytes()
  path.unlink()
  if damage != "remove":
    path.write_bytes(data[: len(data) // 2])
  with pytest.raises(InputError) as caught:
    packing.prepare_rows(small_corpus, tokenizer, seq_len=32, directory=tmp_path)
  assert str(path) in str(caught.value)
  assert "run again" in str(caught.value)


def _chats(directory, smollm2, count=40):
  records = [
    {
      "messages": [
        {"role": "system", "content": "Be brief. " * (i % 7)},
        {"role": "user", "content": f"question {i} " + "word " * (i % 11)},
        {"role": "assistant", "content": f"answer {i}"},
        {"role": "user", "content": "and then?"},
        {"role": "assistant", "content": "nothing " * (1 + i % 5)},
      ]
    }
    for i in range(count)
  ]
  (directory / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
  return corpus.prepare_corpus(
    str(directory / "chats.jsonl"),
    directory / "cache",
    held_out_fraction=0.3,
    renderer=smollm2.conversation_renderer,
  )


@pytest.mark.parametrize("seq_len", [24, 300])
def test_targets_of_chats_are_the_mask_of_the_rows(smollm2, tmp_path, seq_len):
  chats = _chats(tmp_path, smollm2)
  rows = packing.prepare_rows(chats, smollm2, seq_len=seq_len, directory=tmp_path)
  for split in corpus.SPLITS:
    wanted, contexts = collections.Counter(), 0
    for document in chats.documents(split):
      ids, targets = smollm2.encode_document(document)
      wanted.update(ids[targets != 0].tolist())
      contexts += len(ids)
    found, tokens = collections.Counter(), 0
    source = pipeline.RowSource(rows, split)
    for row in (source[i] for i in range(len(source))):
      found.update(row.labels[row.mask].tolist())
      tokens += np.count_nonzero(row.segment_ids)
    # Every token of the assistant is a target exactly once.
    assert found == wanted
    assert rows.num_targets[split] == sum(wanted.values())
    if seq_len == 300:
      assert tokens == contexts
  assert rows.fill > 0.6
  # The template's own tokens stand for no text.
  spoken = [
    sum(len(s.text.removesuffix("<|im_end|>").encode()) for s in document if s.is_target)
    for document in chats.documents("held_out")
  ]
  assert pipeline.held_out_bytes(rows) == sum(spoken)


def test_documents_of_other_lengths_are_left_out(small_corpus, tokenizer, tmp_path):
  lengths = [len(tokenizer.encode(text)) + 1 for text in small_corpus.texts("train")]
  rows = packing.prepare_rows(
    small_corpus, tokenizer, seq_len=500, directory=tmp_path, min_tokens=50, max_tokens=200
  )
  kept = [length for length in lengths if 50 <= length <= 200]
  assert 0 < rows.num_left_out["train"] == len(lengths) - len(kept)
  assert rows.num_tokens["train"] == sum(kept)
  assert (
    len(
      {
        rows.fingerprint,
        packing.prepare_rows(small_corpus, tokenizer, seq_len=500, directory=tmp_path).fingerprint,
      }
    )
    == 2
  )


@pytest.mark.parametrize("after", [1, 3, 5])
def test_interrupted_packing_goes_on(small_corpus, tokenizer, rows, tmp_path, monkeypatch, after):
  # Rows are noted when a shard is full: here with each group of open rows.
  monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 64)
  monkeypatch.setattr(packing, "_DOCUMENTS_AT_ONCE", 5)
  real, calls = packing.OpenRows.take, []

  def take(self):
    calls.append(self)
    if len(calls) == after:
      raise KeyboardInterrupt
    return real(self)

  monkeypatch.setattr(packing.OpenRows, "take", take)
  whole = sum(-(-rows.num_rows[split] // 64) for split in corpus.SPLITS)
  prepare = lambda: packing.prepare_rows(small_corpus, tokenizer, seq_len=32, directory=tmp_path)
  with contextlib.suppress(KeyboardInterrupt):
    prepare()
  assert len(calls) == after
  again = prepare()
  # Groups of rows in full shards are not made again; the last of train is in none.
  assert len(calls) <= whole + 2
  for split in corpus.SPLITS:
    ours, theirs = (pipeline.RowSource(one, split) for one in (rows, again))
    assert len(ours) == len(theirs)
    for index in range(len(ours)):
      jax.tree.map(np.testing.assert_array_equal, ours[index], theirs[index])
  assert again.held_out_bytes == rows.held_out_bytes
  assert (again.num_targets, again.num_tokens) == (rows.num_targets, rows.num_tokens)
  assert again.lost_bytes == rows.lost_bytes
