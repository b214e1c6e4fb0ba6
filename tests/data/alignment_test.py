"""Spans of two tokenizations: what they spell, and what happens where the texts differ."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from egad_jax.data.alignment import align

END = b"\xff"


def pieces_of(text: str, cuts) -> list[bytes]:
  """The text cut at the given bytes."""
  data, cuts = text.encode(), sorted({0, *cuts, len(text.encode())})
  return [data[a:b] for a, b in itertools.pairwise(cuts)]


def spelled(pieces, spans, span) -> bytes:
  return b"".join(p for p, c in zip(pieces, spans, strict=True) if c == span)


def check(student, teacher) -> tuple[np.ndarray, np.ndarray]:
  """Aligns, and checks what holds for any two texts."""
  spans = align(student, teacher)
  for side, pieces in zip(spans, (student, teacher), strict=True):
    assert side.dtype == np.int32
    assert side.shape == (len(pieces),)
    inside = side[side > 0]
    assert (np.diff(inside) >= 0).all()
    np.testing.assert_array_equal(np.unique(inside), np.arange(1, spans[0].max(initial=0) + 1))
  for span in range(1, spans[0].max(initial=0) + 1):
    text = spelled(student, spans[0], span)
    assert text
    assert spelled(teacher, spans[1], span) == text
  return spans


def test_identical_tokenizations_are_aligned_one_to_one():
  pieces = [b"un", b"able", b" to", b" to", END]
  student, teacher = check(pieces, pieces)
  np.testing.assert_array_equal(student, [1, 2, 3, 4, 5])
  np.testing.assert_array_equal(teacher, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("seed", range(5))
def test_one_text_cut_twice(seed):
  generator = np.random.default_rng(seed)
  text = "naïve café 🙂 the entropy of the teacher\n" * 30
  cuts = [set(generator.integers(1, len(text.encode()), 400).tolist()) for _ in range(2)]
  student, teacher = (pieces_of(text, c) for c in cuts)
  spans = check(student, teacher)
  # Every byte is in a span, and there are as many as places where both cut.
  assert (spans[0] > 0).all()
  assert (spans[1] > 0).all()
  assert spans[0].max() == len(cuts[0] & cuts[1]) + 1


def test_tokens_without_text_are_in_no_span():
  student, teacher = check([b"", b"ab", b"", b"c", b""], [b"a", b"", b"b", b"c"])
  np.testing.assert_array_equal(student, [0, 1, 0, 2, 0])
  np.testing.assert_array_equal(teacher, [1, 0, 1, 2])


def test_nothing_to_align():
  for student, teacher in (([], []), ([b"a"], []), ([b"", b""], [b""]), ([b"abc"], [b"xyz"])):
    spans = check(student, teacher)
    assert not spans[0].any()
    assert not spans[1].any()


def test_a_lost_character_spoils_its_own_span_alone():
  text = "one two \x00three four"
  student = [b"one", b" two", b" \x00", b"three", b" four", END]
  teacher = [b"one", b" two", b" ", b"three", b" fo", b"ur", END]
  assert b"".join(student)[:-1].decode() == text
  spans = check(student, teacher)
  np.testing.assert_array_equal(spans[0], [1, 2, 0, 3, 4, 5])
  np.testing.assert_array_equal(spans[1], [1, 2, 0, 3, 4, 4, 5])


def test_a_space_in_front():
  spans = check([b"some", b" text", END], [b" some", b" text", END])
  np.testing.assert_array_equal(spans[0], [0, 1, 2])
  np.testing.assert_array_equal(spans[1], [0, 1, 2])


def test_normalized_text():
  student = [b"The", b" NAME", b" of", b" the", b" Rose", b" and", b" others", END]
  teacher = [b"the", b" name", b" of", b" the", b" rose", b" and", b" others", END]
  spans = check(student, teacher)
  np.testing.assert_array_equal(spans[0], [0, 0, 1, 2, 0, 3, 4, 5])
  np.testing.assert_array_equal(spans[1], spans[0])


def test_different_ends():
  spans = check([b"same", b" x", END], [b"same", b" yy", END])
  np.testing.assert_array_equal(spans[0], [1, 0, 2])
  np.testing.assert_array_equal(spans[1], [1, 0, 2])


@pytest.mark.short_form(1)
@pytest.mark.parametrize("seed", range(3))
def test_many_differences(seed):
  """Bytes lost, changed and added here and there: most of the text is still aligned."""
  generator = np.random.default_rng(seed)
  words = [f" word{i}" for i in generator.integers(0, 999, 3000)]
  student = [word.encode() for word in words]
  edits = generator.integers(0, 100, len(words))
  kinds = {0: lambda w: b"", 1: lambda w: w.upper(), 2: lambda w: w + b"\x00\x01"}
  teacher = [kinds.get(int(e), lambda w: w)(w) for e, w in zip(edits, student, strict=True)]
  spans = check(student, teacher)
  assert 0.9 < np.mean(spans[0] > 0) < 0.99
  # One long gap is bridged, one beyond the window ends the alignment.
  for gap, share in ((150, 0.9), (1000, 0.0)):
    spans = check(student[:gap] + student[gap : gap + 50], student[gap : gap + 50])
    assert np.mean(spans[1] > 0) >= share


def test_unrelated_texts_do_not_take_long():
  generator = np.random.default_rng(0)
  student, teacher = (
    [bytes(generator.integers(low, low + 20, 5).tolist()) for _ in range(20000)]
    for low in (60, 100)
  )
  spans = check(student, teacher)
  assert not spans[0].any()
