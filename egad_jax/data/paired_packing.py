"""Packs text for two tokenizers: a row holds the same text in both vocabularies."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from egad_jax.data.alignment import align
from egad_jax.data.corpus import HELD_OUT, Corpus
from egad_jax.data.packed_rows import BYTES, SIDES, Rows, build_rows_once
from egad_jax.data.packing import Piece, write_rows
from egad_jax.data.spans import Document, text_of
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError

# Stands for the end of a document on both sides, so that the ends align; UTF-8 has no such byte.
_DOCUMENT_END = b"\xff"


def prepare_paired_rows(
  corpus: Corpus,
  student_tokenizer: Tokenizer,
  teacher_tokenizer: Tokenizer,
  *,
  seq_len: int,
  directory: epath.PathLike,
) -> Rows:
  """Packs a corpus into rows for two tokenizers, unless the cache holds them already.

  A document becomes the `prefix_ids`, tokens and `end_ids` of each tokenizer, aligned into spans
  (see `align`) and cut between spans into pieces of at most seq_len + 1 tokens on either side:
  so each span is a target exactly once, except a document's first span if one side has no token
  in front of it. Tokens outside any span are context, not targets.

  Args:
    corpus: the documents to pack.
    student_tokenizer: the tokenizer of the student's side.
    teacher_tokenizer: the tokenizer of the teacher's side.
    seq_len: the most targets of a row on either side, at least 1.
    directory: the cache directory; the rows get a directory of their own there, named after their
      fingerprint.

  Returns:
    The rows, whose files have been checked.

  Raises:
    InputError: `seq_len` is not positive, files are damaged, or the cache cannot be written.
  """
  tokenizers = (student_tokenizer, teacher_tokenizer)
  return build_rows_once(
    corpus,
    tokenizers,
    functools.partial(_pack_split, corpus, tokenizers, seq_len),
    seq_len=seq_len,
    directory=directory,
  )


def cut_pair(
  student_spans: np.ndarray, teacher_spans: np.ndarray, seq_len: int
) -> tuple[list[tuple[slice, slice, int]], list[int]]:
  """Cuts an aligned document into pieces that hold whole spans.

  Args:
    student_spans: integers [student tokens], span ids ascending from 1, 0 outside any span.
    teacher_spans: integers [teacher tokens], ids of the same spans.
    seq_len: the most targets of a piece on either side.

  Returns:
    (pieces, dropped). A piece is a slice of the student's tokens, a slice of the teacher's, at most
    seq_len + 1 tokens each, and the id of the first span that is a target in it. All later spans
    are targets too; the tokens in front are context (the last token of the piece before, or the
    document's first span). `dropped` are the ids of spans longer than seq_len tokens on one side.

  >>> pieces, dropped = cut_pair(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 3]), 2)
  >>> [(student.stop, teacher.stop, first) for student, teacher, first in pieces]
  [(3, 2, 2), (4, 4, 3)]
  """
  cuts = _cuts(student_spans, teacher_spans)
  pieces, dropped = [], list[int]()
  # A span can be predicted only if both sides have a token in front of it.
  at = int(np.argmax(cuts.min(axis=1) >= 1))
  context = np.zeros(2, int)
  while at < len(cuts) - 1:
    ends = [np.searchsorted(cuts[:, i], context[i] + seq_len + 1, side="right") for i in (0, 1)]
    end = int(min(ends)) - 1
    start, stop = cuts[[at, max(end, at + 1)], 0]
    spans = student_spans[start:stop][student_spans[start:stop] > 0]
    if end > at:
      if len(spans):
        parts = [slice(int(i), int(j)) for i, j in zip(context, cuts[end], strict=True)]
        pieces.append((parts[0], parts[1], int(spans[0])))
      at = end
    elif (context == cuts[at] - 1).all():
      dropped += set(spans.tolist())
      at += 1
    context = cuts[at] - 1
  return pieces, dropped


def _cuts(*sides: np.ndarray) -> np.ndarray:
  """The possible cuts, before and after each span: [n, 2] tokens in front on each side."""
  columns = []
  for spans in sides:
    places = np.flatnonzero(spans)
    starts = places[np.flatnonzero(np.diff(spans[places], prepend=0))]
    ends = places[np.flatnonzero(np.diff(spans[places], append=-1))] + 1
    columns.append(np.concatenate([[0], np.stack([starts, ends], 1).ravel(), [len(spans)]]))
  return np.unique(np.stack(columns, 1), axis=0)


class _Documents:
  """Turns documents into pieces, and counts bytes and spans that become no targets."""

  def __init__(self, tokenizers: Sequence[Tokenizer], seq_len: int, split: str) -> None:
    self._tokenizers = tokenizers
    self._split = split
    self._pieces = [tokenizer.token_pieces() for tokenizer in tokenizers]
    self._seq_len = seq_len

  def __call__(self, documents: list[Document]) -> list[tuple[list[Piece], Mapping[str, int]]]:
    """The pieces of each document; see `packing.PiecesOf`."""
    if any(span.special or not span.is_target for document in documents for span in document):
      raise InputError(
        "a method for two tokenizers needs records of the format text: the chat templates of "
        "student and teacher differ. Set data.format=text, or use another method."
      )
    with_bytes = self._split == HELD_OUT
    student = self._tokenizers[0].encode_documents(documents, with_bytes=with_bytes)
    texts = [text_of(document) for document in documents]
    teacher = self._tokenizers[1].encode_batch(texts)
    return [
      self._pieces_of(text.encode(), (own.ids[own.text].tolist(), other), own.text_bytes)
      for text, own, other in zip(texts, student, teacher, strict=True)
    ]

  def _pieces_of(
    self, text: bytes, ids: Sequence[Sequence[int]], text_bytes: np.ndarray | None
  ) -> tuple[list[Piece], Mapping[str, int]]:
    strings, tokens = [], []
    for own, table, tokenizer in zip(ids, self._pieces, self._tokenizers, strict=True):
      if not own:
        return [], {}
      front, ends = tokenizer.prefix_ids, tokenizer.end_ids
      strings.append([b""] * len(front) + [table[i] for i in own] + [b""] * len(ends))
      # Ids around a text stand for no bytes; the last one ends the document on both sides.
      strings[-1][-1] = _DOCUMENT_END
      tokens.append(np.asarray([*front, *own, *ends], np.int32))
    spans = align(*strings)
    pieces, dropped = cut_pair(spans[0], spans[1], self._seq_len)
    used = (spans[0] > 0) & ~np.isin(spans[0], dropped)
    # The last token, the document's end, is no text.
    kept = sum(len(s) for s, use in zip(strings[0][:-1], used[:-1], strict=True) if use)
    counts = {"lost_bytes": max(0, len(text) - kept), "dropped_spans": len(dropped)}

    def side(i: int, part: slice, first: int) -> dict[str, np.ndarray]:
      targets = np.maximum(spans[i][part] - first + 1, 0)
      return {SIDES[i]: tokens[i][part], f"{SIDES[i]}_targets": targets}

    def sizes(part: slice) -> dict[str, np.ndarray]:
      if text_bytes is None:
        return {}
      return {BYTES: text_bytes[part]}

    found = [side(0, s, first) | side(1, t, first) | sizes(s) for s, t, first in pieces]
    return found, counts


def _pack_split(
  corpus: Corpus,
  tokenizers: Sequence[Tokenizer],
  seq_len: int,
  split: str,
  work: pathlib.Path,
) -> dict[str, Any]:
  documents = _Documents(tokenizers, seq_len, split)
  written = write_rows(corpus, split, documents, work, sides=2, seq_len=seq_len)
  if written.get("lost_bytes"):
    logging.warning(
      "%s: %d bytes of the text are no targets: the tokenizers do not agree on them, or %d spans "
      "are longer than a row.",
      split,
      written["lost_bytes"],
      written["dropped_spans"],
    )
  return written
