"""Paired rows: the same text on both sides, each span a target once, whatever the tokenizers."""

from __future__ import annotations

import collections
import copy
import json

import numpy as np
import pytest

from egad_jax.data import batches, corpus, paired_packing, pipeline
from egad_jax.data.alignment import align
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError

SEQ = 32  # Of `paired_rows`.


@pytest.fixture
def rows(paired_rows):
  return paired_rows


def all_rows(rows, split):
  source = pipeline.RowSource(rows, split)
  return [source[i] for i in range(len(source))]


def pieces_by_span(row: batches.PairedBatch, tokenizer, teacher_tokenizer):
  """[(student's label bytes, teacher's label bytes)] of the spans of a row, in order."""
  tables = [t.token_pieces() for t in (tokenizer, teacher_tokenizer)]
  ends = [t.document_end_id for t in (tokenizer, teacher_tokenizer)]
  sides = ((row.student, row.student_spans), (row.teacher, row.teacher_spans))
  found = []
  for span in range(1, max(row.student_spans.max(), row.teacher_spans.max()) + 1):
    pair = []
    for (side, spans), table, end in zip(sides, tables, ends, strict=True):
      labels = side.labels[spans == span]
      pair.append(b"".join(b"\xff" if i == end else table[i] for i in labels))
    found.append(tuple(pair))
  return found


def aligned(text: bytes, *tokenizers):
  """(ids of each side with the document's end, spans of each side)."""
  ids = [t.encode(text.decode()) for t in tokenizers]
  tables = [t.token_pieces() for t in tokenizers]
  strings = [[*(table[i] for i in side), b"\xff"] for side, table in zip(ids, tables, strict=True)]
  ends = [t.document_end_id for t in tokenizers]
  return [[*side, end] for side, end in zip(ids, ends, strict=True)], align(*strings)


@pytest.mark.parametrize("split", corpus.SPLITS)
def test_a_span_is_the_same_text_on_both_sides(rows, tokenizer, teacher_tokenizer, split):
  merged = 0
  for row in all_rows(rows, split):
    for student, teacher in pieces_by_span(row, tokenizer, teacher_tokenizer):
      assert student == teacher
      assert student
    for side, spans in ((row.student, row.student_spans), (row.teacher, row.teacher_spans)):
      assert spans.dtype == np.int32
      np.testing.assert_array_equal(spans > 0, side.mask)
      inside = spans[spans > 0]
      # Ascending without gaps, so that span c of C is at c - 1.
      assert set(np.diff(inside, prepend=0)) <= {0, 1}
      merged += np.sum(np.diff(inside) == 0)
    assert row.student_spans.max() == row.teacher_spans.max()
  assert merged > 0


@pytest.mark.parametrize("split", corpus.SPLITS)
def test_every_token_but_of_the_first_span_is_a_target_once(
  small_corpus, rows, tokenizer, teacher_tokenizer, split
):
  wanted = [collections.Counter(), collections.Counter()]
  targets = 0
  for text in small_corpus.texts(split):
    ids, spans = aligned(text.encode(), tokenizer, teacher_tokenizer)
    assert min(min(side) for side in spans) == 1
    for side, numbers, counter in zip(ids, spans, wanted, strict=True):
      counter.update(np.asarray(side)[np.asarray(numbers) > 1].tolist())
    targets += int(np.sum(np.asarray(spans[0]) > 1))
  found = [collections.Counter(), collections.Counter()]
  for row in all_rows(rows, split):
    for side, counter in zip((row.student, row.teacher), found, strict=True):
      counter.update(side.labels[side.mask].tolist())
  assert found == wanted
  assert rows.num_targets[split] == targets
  assert rows.lost_bytes[split] == 0


def test_documents_can_be_read_back(small_corpus, tokenizer, teacher_tokenizer, tmp_path):
  rows = paired_packing.prepare_paired_rows(
    small_corpus, tokenizer, teacher_tokenizer, seq_len=512, directory=tmp_path
  )
  wanted = sorted(small_corpus.texts("train"))
  for name, one in (("student", tokenizer), ("teacher", teacher_tokenizer)):
    found = []
    for row in all_rows(rows, "train"):
      side = getattr(row, name)
      for segment in range(1, side.segment_ids.max() + 1):
        inside = side.segment_ids == segment
        last = np.flatnonzero(inside)[-1]
        np.testing.assert_array_equal(side.positions[inside], np.arange(inside.sum()))
        ids = [*side.tokens[inside], side.labels[last]]
        found.append(one.decode(ids, skip_special=True))
    assert sorted(found) == wanted


def test_each_side_ends_documents_in_its_own_way(
  small_corpus, tokenizer, teacher_tokenizer, tmp_path
):
  teacher = copy.copy(teacher_tokenizer)
  teacher.end_ids = (7,)
  rows = paired_packing.prepare_paired_rows(
    small_corpus, tokenizer, teacher, seq_len=512, directory=tmp_path
  )
  ends = collections.Counter()
  for row in all_rows(rows, "held_out"):
    for name, side in (("student", row.student), ("teacher", row.teacher)):
      # The last label before padding, or before another document, is a document's end.
      last = side.mask & ~np.append(side.mask[1:], False)
      ends.update((name, int(label)) for label in side.labels[last])
  documents = small_corpus.num_documents["held_out"]
  assert ends == {("student", tokenizer.document_end_id): documents, ("teacher", 7): documents}


def test_segments_are_the_same_documents_on_both_sides(rows):
  for row in all_rows(rows, "train"):
    for span in range(1, row.student_spans.max() + 1):
      segments = [
        side.segment_ids[spans == span]
        for side, spans in ((row.student, row.student_spans), (row.teacher, row.teacher_spans))
      ]
      assert len(set(np.concatenate(segments))) == 1


def test_rows_are_well_filled(rows):
  # The side with more tokens counts; the other holds the same text in fewer.
  filled = [max(row.student.mask.sum(), row.teacher.mask.sum()) for row in all_rows(rows, "train")]
  assert np.mean(filled) / SEQ > 0.8
  assert rows.sides == 2


def test_equal_tokenizers_give_the_rows_of_one(small_corpus, tokenizer, tmp_path):
  rows = paired_packing.prepare_paired_rows(
    small_corpus, tokenizer, tokenizer, seq_len=SEQ, directory=tmp_path
  )
  for row in all_rows(rows, "held_out"):
    for one, other in zip(row.student, row.teacher, strict=True):
      np.testing.assert_array_equal(one, other)
    count = row.student.mask.sum()
    np.testing.assert_array_equal(row.student_spans[row.student.mask], np.arange(1, count + 1))


def test_fingerprint_depends_on_both_tokenizers_and_their_order(
  small_corpus, tokenizer, teacher_tokenizer, rows, tmp_path
):
  prepare = lambda *pair: (
    paired_packing.prepare_paired_rows(
      small_corpus, *pair, seq_len=SEQ, directory=tmp_path
    ).fingerprint
  )
  pair = (tokenizer, teacher_tokenizer)
  fingerprints = [prepare(*pair), prepare(*pair[::-1]), prepare(tokenizer, tokenizer)]
  assert fingerprints[0] == rows.fingerprint
  assert len(set(fingerprints)) == 3


def cut(student, teacher, seq_len):
  return paired_packing.cut_pair(np.array(student), np.array(teacher), seq_len)


def lengths(pieces):
  return [(s.stop - s.start, t.stop - t.start, first) for s, t, first in pieces]


@pytest.mark.parametrize(
  ("student", "teacher", "expected", "dropped"),
  [
    # One token each: as `packing.cut`.
    ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], [(3, 3, 2), (3, 3, 4), (2, 2, 6)], []),
    # Nothing but a first span.
    ([1, 1], [1], [], []),
    # The teacher's side is full first.
    ([1, 2, 3], [1, 2, 2, 3], [(2, 3, 2), (2, 2, 3)], []),
    # A first span as context, whole where it fits, else its last token.
    ([1, 1, 2], [1, 2], [(3, 2, 2)], []),
    ([1, 1, 1, 2], [1, 2], [(2, 2, 2)], []),
    # A span longer than a row is dropped, and is context for the next.
    ([1, 2, 2, 2, 3], [1, 2, 3], [(2, 2, 3)], [2]),
    # What is in no span is context: between spans, before the first, after the last.
    ([1, 0, 2], [1, 2], [(3, 2, 2)], []),
    ([0, 1, 2], [0, 1, 2], [(3, 3, 1)], []),
    ([0, 1, 2], [1, 2], [(3, 2, 2)], []),
    ([1, 0, 0, 0, 2], [1, 2], [(2, 2, 2)], []),
    ([0, 0], [0], [], []),
  ],
)
def test_cuts_of_two_targets(student, teacher, expected, dropped):
  pieces, found = cut(student, teacher, 2)
  assert lengths(pieces) == expected
  assert found == dropped


def test_cuts_of_random_alignments_hold_every_span_once():
  rng = np.random.default_rng(0)
  for _ in range(200):
    sizes = rng.integers(1, 5, (rng.integers(1, 30), 2))
    student, teacher = (np.repeat(np.arange(1, len(sizes) + 1), sizes[:, i]) for i in (0, 1))
    for spans in (student, teacher):
      keep = {span for span in spans if rng.random() < 0.9}
      student, teacher = (np.where(np.isin(x, list(keep)), x, 0) for x in (student, teacher))
    pieces, dropped = cut(student, teacher, 3)
    seen = []
    for s, t, first in pieces:
      both = []
      for part, spans in ((s, student), (t, teacher)):
        assert part.stop - part.start <= 4
        targets = {c for c in spans[part] if c >= first}
        # Whole, and none at the first place, which nothing predicts.
        assert set(np.flatnonzero(np.isin(spans, list(targets)))) <= set(
          range(part.start + 1, part.stop)
        )
        both.append(targets)
      assert both[0] == both[1]
      assert both[0]
      seen += both[0]
    valid = sorted(set(student[student > 0]))
    too_long = [c for c in valid if max(np.sum(student == c), np.sum(teacher == c)) > 3]
    missing = sorted(set(valid) - set(seen))
    assert len(seen) == len(set(seen))
    assert set(dropped) <= set(missing) <= {*dropped, *valid[:1]}
    assert set(dropped) <= set(too_long) <= {*dropped, *valid[:1]}


def test_spans_that_cannot_be_targets_are_counted(tmp_path, tokenizer, caplog):
  """One side has only bytes, so that a long word is one token against many."""
  word = "entropy" * 4
  (tmp_path / "a.jsonl").write_text(
    "".join(json.dumps({"text": f"{i} {word} {word} teacher"}) + "\n" for i in range(40))
  )
  prepared = corpus.prepare_corpus(
    str(tmp_path / "a.jsonl"), tmp_path / "cache", held_out_fraction=0.3
  )
  whole = Tokenizer.train([f" {word} {word}"] * 9, vocab_size=400)
  letters = Tokenizer.train([], vocab_size=257)
  rows = paired_packing.prepare_paired_rows(
    prepared, whole, letters, seq_len=16, directory=tmp_path
  )
  assert rows.lost_bytes["train"] >= 2 * len(word) * prepared.num_documents["train"]
  assert "are longer than a row" in caplog.text


def test_a_length_without_targets_is_refused(small_corpus, tokenizer, tmp_path):
  with pytest.raises(InputError, match=r"seq_len \(0\) must be at least 1"):
    paired_packing.prepare_paired_rows(
      small_corpus, tokenizer, tokenizer, seq_len=0, directory=tmp_path
    )
