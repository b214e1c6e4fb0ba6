"""Aligns two tokenizations of one text.

X-Token (arXiv 2605.21699) aligns the pieces with Needleman-Wunsch. Here both sides spell the same
bytes, so their common token boundaries give the alignment exactly, in linear time and without
scores to choose. Only where the bytes differ (a tokenizer that normalizes, an unknown character)
are they matched first.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

# Bytes after a difference within which equal bytes are searched; the small window is tried first.
_WINDOWS = (64, 1024)
# Fewer equal bytes than this after a difference count as chance.
_SHORTEST_MATCH = 4


def align(
  student_pieces: Sequence[bytes], teacher_pieces: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray]:
  """Divides two tokenizations into spans, the smallest stretches whose ends both sides share.

  Args:
    student_pieces: the bytes of each of the student's tokens, see `Tokenizer.token_pieces`. Tokens
      without bytes are in no span. For a token that both sides share but that stands for no text,
      such as the document's end, pass the same bytes on both sides; they must not occur in the text
      (0xff is not in UTF-8).
    teacher_pieces: the bytes of each of the teacher's tokens.

  Returns:
    The span id of each token, int32 [student tokens] and int32 [teacher tokens]. Ids ascend from 1
    and each occurs on both sides; 0 means in no span: a token without bytes, or one that touches
    bytes that the other side spells differently.

  >>> student, teacher = align([b"un", b"able", b" to"], [b"unab", b"le", b" ", b"to"])
  >>> student.tolist(), teacher.tolist()
  ([1, 1, 2], [1, 1, 2, 2])
  """
  texts = [b"".join(pieces) for pieces in (student_pieces, teacher_pieces)]
  lengths = [np.array([len(p) for p in pieces], int) for pieces in (student_pieces, teacher_pieces)]
  ends = [np.cumsum(length) for length in lengths]
  spans = [np.zeros(len(length), np.int32) for length in lengths]
  last = 0
  for *starts, size in _matching_blocks(*(np.frombuffer(text, np.uint8) for text in texts)):
    ours, theirs = (_boundaries(end, at, size) for end, at in zip(ends, starts, strict=True))
    common = np.intersect1d(ours, theirs, assume_unique=True)
    if len(common) < 2:
      continue
    for span, end, start in zip(spans, ends, starts, strict=True):
      first, stop = np.searchsorted(end, start + common[[0, -1]], side="right")
      span[first:stop] = last + np.searchsorted(common, end[first:stop] - start)
    last += len(common) - 1
  for span, length in zip(spans, lengths, strict=True):
    span[length == 0] = 0
  return spans[0], spans[1]


def _boundaries(ends: np.ndarray, start: int, size: int) -> np.ndarray:
  """Token boundaries in [start, start + size], in bytes from `start`; a text's start is one."""
  first, stop = np.searchsorted(ends, [start, start + size + 1])
  inside = np.unique(ends[first:stop]) - start
  return inside if start or (len(inside) and inside[0] == 0) else np.concatenate([[0], inside])


def _matching_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, int, int]]:
  """Yields (start in a, start in b, bytes) of stretches that are equal, in order."""
  head = _equal_bytes(a, b)
  if head:
    yield 0, 0, head
  # The common tail is matched first, so that it matches however short it is.
  tail = _equal_bytes(a[head:][::-1], b[head:][::-1])
  end_a, end_b = len(a) - tail, len(b) - tail
  i = j = head
  while i < end_a and j < end_b:
    meeting = _meeting(a[i:end_a], b[j:end_b])
    if meeting is None:
      break
    i, j = i + meeting[0], j + meeting[1]
    size = _equal_bytes(a[i:end_a], b[j:end_b])
    yield i, j, size
    i, j = i + size, j + size
  if tail:
    yield end_a, end_b, tail


def _meeting(a: np.ndarray, b: np.ndarray) -> tuple[int, int] | None:
  """Offsets where two texts that begin differently are equal again; None if out of the window."""
  for window in _WINDOWS:
    # autojunk would ignore frequent elements, which bytes are.
    matcher = difflib.SequenceMatcher(None, bytes(a[:window]), bytes(b[:window]), autojunk=False)
    for match in matcher.get_matching_blocks():
      if match.size >= _SHORTEST_MATCH:
        return match.a, match.b
  return None


def _equal_bytes(a: np.ndarray, b: np.ndarray) -> int:
  """The number of bytes that are equal from the start."""
  size = min(len(a), len(b))
  # Compared in steps: otherwise each of many close differences would compare the whole rest.
  for start, stop in itertools.pairwise([*range(0, size, 4096), size]):
    different = a[start:stop] != b[start:stop]
    if different.any():
      return start + int(different.argmax())
  return size
