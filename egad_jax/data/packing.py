"""Tokenizes a corpus and packs it, once, into rows of fixed length on disk."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from egad_jax import progress
from egad_jax.data import batches, shards
from egad_jax.data.best_fit import OpenRows
from egad_jax.data.corpus import HELD_OUT, Corpus
from egad_jax.data.document_encoding import EncodedDocument
from egad_jax.data.packed_rows import (
  BYTES,
  FIELDS,
  OPEN_ROWS,
  RECORD_DTYPE,
  SIDES,
  Rows,
  build_rows_once,
)
from egad_jax.data.spans import Document, text_of
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.files import owned

_DOCUMENTS_AT_ONCE = 256
# Groups of documents that are tokenized ahead of the packing.
_AHEAD = 2
# {side: int32 tokens, f"{side}_targets": nonzero where a token is a target}, and for held-out text
# {BYTES: number of bytes of text that each of the student's tokens stands for}.
Piece = dict[str, np.ndarray]
# For each document its pieces, and what is to be added to the totals of its split.
PiecesOf = Callable[[list[Document]], list[tuple[list[Piece], Mapping[str, int]]]]


def prepare_rows(
  corpus: Corpus,
  tokenizer: Tokenizer,
  *,
  seq_len: int,
  directory: epath.PathLike,
  min_tokens: int = 0,
  max_tokens: int = 0,
) -> Rows:
  """Packs a corpus into rows, unless the cache holds them already.

  A document becomes `tokenizer.encode_document`, cut into pieces of seq_len + 1 tokens that overlap
  by one: so in plain text each token is a target exactly once, except the prefix and, if there is
  none, the document's first token. A document without tokens has no piece, and a piece without
  targets is left out.
  Nothing here is random; `pipeline` shuffles the rows for training.

  Args:
    corpus: the documents to pack.
    tokenizer: the tokenizer whose ids the rows hold.
    seq_len: the most targets of a row, at least 1.
    directory: the cache directory; the rows get a directory of their own there, named after their
      fingerprint.
    min_tokens: documents of fewer tokens, those around the text included, are left out.
    max_tokens: documents of more tokens are left out; 0: none is.

  Returns:
    The rows, whose files have been checked.

  Raises:
    InputError: `seq_len` is not positive, files are damaged, or the cache cannot be written.
  """
  lengths = (min_tokens, max_tokens)
  return build_rows_once(
    corpus,
    (tokenizer,),
    functools.partial(_pack_split, corpus, tokenizer, seq_len, lengths),
    seq_len=seq_len,
    directory=directory,
    options=lengths,
  )


def cut(ids: Sequence[int] | np.ndarray, seq_len: int) -> list[np.ndarray]:
  """Cuts a document into pieces of at most seq_len + 1 tokens that overlap by one.

  A document of one token has no piece, because that would hold no target.

  >>> [piece.tolist() for piece in cut([1, 2, 3, 4, 5, 6], 2)]
  [[1, 2, 3], [3, 4, 5], [5, 6]]
  >>> cut([1], 2)
  []
  """
  tokens = np.asarray(ids, np.int32)
  return [tokens[start : start + seq_len + 1] for start in range(0, len(tokens) - 1, seq_len)]


def _pieces(encoded: EncodedDocument, seq_len: int) -> list[Piece]:
  """The pieces of one document that hold a target."""
  if encoded.text.start == encoded.text.stop:
    return []
  fields = {"student": encoded.ids, "student_targets": encoded.targets}
  if encoded.text_bytes is not None:
    fields[BYTES] = encoded.text_bytes
  columns = [cut(values, seq_len) for values in fields.values()]
  pieces = [dict(zip(fields, column, strict=True)) for column in zip(*columns, strict=True)]
  return [piece for piece in pieces if piece["student_targets"][1:].any()]


def _pack_split(
  corpus: Corpus,
  tokenizer: Tokenizer,
  seq_len: int,
  lengths: tuple[int, int],
  split: str,
  work: pathlib.Path,
) -> dict[str, Any]:
  token_bytes = tokenizer.token_bytes()
  least, most = lengths

  def counted(document: Document, encoded: EncodedDocument) -> tuple[list[Piece], dict[str, int]]:
    size = len(encoded.ids)
    if size < least or (most and size > most):
      return [], {"left_out": 1}
    if document[0].special:  # The spellings of special tokens are no text.
      return _pieces(encoded, seq_len), {}
    stand_for = int(token_bytes[encoded.ids[encoded.text]].sum())
    lost = max(0, len(text_of(document).encode()) - stand_for)
    return _pieces(encoded, seq_len), {"lost_bytes": lost}

  def pieces_of(documents: list[Document]) -> list[tuple[list[Piece], Mapping[str, int]]]:
    # Only evaluations need bytes, and finding them takes time.
    encoded = tokenizer.encode_documents(documents, with_bytes=split == HELD_OUT)
    return list(map(counted, documents, encoded))

  written = write_rows(corpus, split, pieces_of, work, sides=1, seq_len=seq_len)
  if written.get("lost_bytes"):
    logging.warning(
      "%s: the vocabulary has no token for %d bytes of the text; they are left out.",
      split,
      written["lost_bytes"],
    )
  if written.get("left_out"):
    logging.info(
      "%s: %d of %d documents have fewer than %d tokens or more than %s; they are left out.",
      split,
      written["left_out"],
      corpus.num_documents[split],
      least,
      most or "any number",
    )
  return written


def write_rows(
  corpus: Corpus,
  split: str,
  pieces_of: PiecesOf,
  work: pathlib.Path,
  *,
  sides: int,
  seq_len: int,
) -> dict[str, Any]:
  """Packs the pieces of a split's documents and writes the rows; goes on after an interruption.

  Args:
    corpus: the corpus that holds the documents.
    split: "train" or "held_out".
    pieces_of: documents -> pieces, each of at most seq_len + 1 tokens on every side. It is called
      in one thread, in order.
    work: the directory of unfinished work; the shards come into its directory `split`.
    sides: number of sides of the pieces, 1 or 2. A row takes a piece if all sides have room for it.
    seq_len: the most targets of a row.

  Returns:
    {"shards", "rows", "targets", "tokens"}: the files with their numbers of records, and the
    totals, those of `pieces_of` too; for the held-out split also "row_bytes", see
    `Rows.held_out_bytes`.
  """
  directory = epath.Path(work / split)
  directory.mkdir(exist_ok=True)
  name = f"tokenizing and packing, {split.replace('_', '-')}"
  total = corpus.num_documents[split]
  packing = _Packing(corpus, split, pieces_of, work / f"{split}.json", sides, seq_len)
  done = min(packing.document, total)
  with progress.phase(name, total, completed=done) as phase:
    written = shards.write_shards(
      directory,
      split,
      packing.records(phase),
      before=packing.shards,
      when_full=packing.note,
    )
  totals = packing.totals
  if totals["rows"]:
    logging.info(
      "%s: %d documents in %d rows of %d tokens, %.1f %% filled; %d tokens are targets.",
      split,
      total,
      totals["rows"],
      seq_len + 1,
      100 * totals["tokens"] / (totals["rows"] * (seq_len + 1)),
      totals["targets"],
    )
  return {"shards": written, **totals}


class _Packing:
  """The packing of one split, which can be noted on the disk when a shard is full.

  Attributes:
    document: number of the document at which the open rows began.
    shards: the full shards that were written before.
    totals: totals of the rows so far.
  """

  def __init__(
    self,
    corpus: Corpus,
    split: str,
    pieces_of: PiecesOf,
    path: pathlib.Path,
    sides: int,
    seq_len: int,
  ) -> None:
    self._corpus, self._split, self._pieces_of, self._path = corpus, split, pieces_of, path
    extra = [BYTES] if split == HELD_OUT else []
    self._rows = OpenRows(OPEN_ROWS, seq_len + 1, SIDES[:sides], extra)
    self.document, self._piece = 0, 0
    self.shards: list[shards.Shard] = []
    self.totals: dict[str, Any] = {"rows": 0, "targets": 0, "tokens": 0}
    if split == HELD_OUT:
      self.totals["row_bytes"] = []
    self._unwritten = 0
    self._is_continued = path.exists()
    if self._is_continued:
      noted = json.loads(path.read_text())
      self.document, self._piece = noted["document"], noted["piece"]
      self.shards, self.totals = noted["shards"], noted["totals"]

  def note(self, full: list[shards.Shard]) -> None:
    """Notes the full shards and what they hold, if no rows are left over that are in none."""
    if not self._unwritten:
      noted = {"document": self.document, "piece": self._piece}
      owned.write_text(
        epath.Path(self._path), json.dumps({**noted, "shards": full, "totals": self.totals})
      )

  def records(self, phase: progress.Phase) -> Iterator[bytes]:
    """Yields the records of the rows; `phase` is told the number of documents."""
    begin, skipped = self.document, self._piece
    for number, (pieces, counts) in enumerate(self._tokenized(begin), start=begin):
      # The document in which the open rows began has been counted.
      if number > begin or not self._is_continued:
        for key, count in counts.items():
          self.totals[key] = self.totals.get(key, 0) + count
        phase.update(1, "documents")
      for place in range(skipped if number == begin else 0, len(pieces)):
        if not self._rows.add(pieces[place]):
          self.document, self._piece = number, place
          yield from self._take()
          self._rows.add(pieces[place])
    self.document = self._corpus.num_documents[self._split]
    yield from self._take()

  def _take(self) -> Iterator[bytes]:
    fields, extras = self._rows.take()
    student = fields[:, 0]
    mask = batches.shift(*(student[:, i] for i in range(FIELDS))).mask
    self.totals["rows"] += len(fields)
    self.totals["targets"] += int(np.count_nonzero(mask))
    self.totals["tokens"] += int(np.count_nonzero(student[:, 1]))
    if self._split == HELD_OUT:
      self.totals["row_bytes"] += (extras[:, 0, 1:] * mask).sum(1).tolist()
    records = fields.astype(RECORD_DTYPE, copy=False)
    for i in range(len(records)):
      self._unwritten = len(records) - i - 1
      yield records[i].tobytes()

  def _tokenized(self, start: int) -> Iterator[tuple[list[Piece], Mapping[str, int]]]:
    """Yields `pieces_of` of each document; other documents are tokenized meanwhile."""
    documents = self._corpus.documents(self._split, start=start)
    groups = iter(lambda: list(itertools.islice(documents, _DOCUMENTS_AT_ONCE)), [])
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
      ahead: collections.deque[Any] = collections.deque()
      for group in groups:
        ahead.append(thread.submit(self._pieces_of, group))
        if len(ahead) > _AHEAD:
          yield from ahead.popleft().result()
      while ahead:
        yield from ahead.popleft().result()
