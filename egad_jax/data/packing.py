"""Tokenizes a corpus and packs it, once, into rows of fixed length on disk."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
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
from egad_jax.data import batches, cached_directory, shards
from egad_jax.data.best_fit import OpenRows
from egad_jax.data.corpus import HELD_OUT, SPLITS, TRAIN, Corpus
from egad_jax.data.document_encoding import EncodedDocument
from egad_jax.data.spans import Document, text_of
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.files import owned

# Part of the fingerprint: raise it with any change to the content of rows, alignment included.
_VERSION = 4
_DOCUMENTS_AT_ONCE = 256
# Groups of documents that are tokenized ahead of the packing.
_AHEAD = 2
# Rows that are filled side by side. More of them leave less padding but cost time for each piece.
_OPEN_ROWS = 64
# A record is little-endian int32 [sides, 4, seq_len + 1]: tokens, segment ids, positions and
# targets of the student's side, then of the teacher's if it has a tokenizer of its own.
_FIELDS = 4
RECORD_DTYPE = np.dtype("<i4")
SIDES = ("student", "teacher")
BYTES = "student_bytes"

# {side: int32 tokens, f"{side}_targets": nonzero where a token is a target}, and for held-out text
# {BYTES: number of bytes of text that each of the student's tokens stands for}.
Piece = dict[str, np.ndarray]
# For each document its pieces, and what is to be added to the totals of its split.
PiecesOf = Callable[[list[Document]], list[tuple[list[Piece], Mapping[str, int]]]]


@dataclasses.dataclass(frozen=True)
class Rows:
  """Packed rows on disk.

  Attributes:
    directory: the rows' directory in the cache.
    fingerprint: SHA-256 of tokenizers, corpus, length and way of packing, in hexadecimal.
    sides: 1, or 2 when each row holds the same text for student and teacher (`paired_packing`).
    seq_len: the most targets of a row; a row has one more token.
    num_rows: number of rows of each split, keyed "train" and "held_out".
    num_targets: number of the student's target tokens of each split, keyed alike.
    num_tokens: number of tokens in the student's side of each split's rows, keyed alike.
    num_left_out: number of documents of each split that were shorter or longer than allowed.
    lost_bytes: bytes of each split's text for which there is no token (see `Tokenizer.encode`), or,
      with two sides, no common span.
    held_out_bytes: bytes of text that the student's targets of each held-out row stand for (see
      `Tokenizer.encode_batch_with_bytes`).
    files: paths of each split's shards, in order.
  """

  directory: epath.Path
  fingerprint: str
  sides: int
  seq_len: int
  num_rows: Mapping[str, int]
  num_targets: Mapping[str, int]
  num_tokens: Mapping[str, int]
  num_left_out: Mapping[str, int]
  lost_bytes: Mapping[str, int]
  held_out_bytes: Sequence[int]
  files: Mapping[str, Sequence[epath.Path]]

  @property
  def train_size(self) -> int:
    """Number of train rows, which make one epoch."""
    return self.num_rows[TRAIN]

  @property
  def held_out_size(self) -> int:
    """Number of held-out rows."""
    return self.num_rows[HELD_OUT]

  @property
  def utilization(self) -> float:
    """Targets over the most that the train rows could hold, from 0 to 1."""
    return self.num_targets[TRAIN] / (self.num_rows[TRAIN] * self.seq_len)

  @property
  def fill(self) -> float:
    """Tokens over the most that the train rows could hold, targets or not, from 0 to 1."""
    return self.num_tokens[TRAIN] / (self.num_rows[TRAIN] * (self.seq_len + 1))


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


def build_rows_once(
  corpus: Corpus,
  tokenizers: Sequence[Tokenizer],
  pack: Callable[[str, pathlib.Path], dict[str, Any]],
  *,
  seq_len: int,
  directory: epath.PathLike,
  options: Sequence[Any] = (),
) -> Rows:
  """Builds the rows' directory in the cache, unless it is there, and opens it.

  Args:
    corpus: the documents to pack.
    tokenizers: the student's tokenizer, and the teacher's if it has its own.
    pack: `(split, work) -> totals` writes the rows of a split and returns what `write_rows` does.
    seq_len: the most targets of a row, at least 1.
    directory: the cache directory.
    options: what else decides the rows; JSON can hold it.

  Raises:
    InputError: `seq_len` is not positive, files are damaged, or the cache cannot be written.
  """
  if seq_len < 1:
    raise InputError(f"seq_len ({seq_len}) must be at least 1.")
  fingerprints = [tokenizer.fingerprint for tokenizer in tokenizers]
  fingerprint = cached_directory.digest(
    [_VERSION, _OPEN_ROWS, corpus.fingerprint, *fingerprints, seq_len, *options]
  )
  parent, name = epath.Path(directory), f"rows-{fingerprint[:16]}"

  def build(target: epath.Path) -> dict[str, Any]:
    with cached_directory.unfinished(parent, name) as work:
      splits = {split: pack(split, work) for split in SPLITS}
      # Only now, since an interrupted process loses the target.
      for split in SPLITS:
        for shard in splits[split]["shards"]:
          (epath.Path(work) / split / shard["file"]).rename(target / shard["file"])
    return {
      "fingerprint": fingerprint,
      "corpus": corpus.fingerprint,
      "tokenizers": fingerprints,
      "seq_len": seq_len,
      "splits": splits,
    }

  return open_rows(cached_directory.build_once(parent, name, build))


def open_rows(directory: epath.PathLike) -> Rows:
  """Opens packed rows and checks that every shard is there and whole.

  Raises:
    InputError: a file is missing or damaged; the message names it.
  """
  directory = epath.Path(directory)
  manifest = cached_directory.read_manifest(directory)
  splits = manifest["splits"]
  for shard in itertools.chain.from_iterable(splits[split]["shards"] for split in SPLITS):
    shards.check_shard(directory / shard["file"], shard["records"])
  return Rows(
    directory=directory,
    fingerprint=manifest["fingerprint"],
    sides=len(manifest["tokenizers"]),
    seq_len=manifest["seq_len"],
    num_rows={split: splits[split]["rows"] for split in SPLITS},
    num_targets={split: splits[split]["targets"] for split in SPLITS},
    num_tokens={split: splits[split]["tokens"] for split in SPLITS},
    num_left_out={split: splits[split].get("left_out", 0) for split in SPLITS},
    lost_bytes={split: splits[split].get("lost_bytes", 0) for split in SPLITS},
    held_out_bytes=splits[HELD_OUT]["row_bytes"],
    files={split: [directory / s["file"] for s in splits[split]["shards"]] for split in SPLITS},
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


def decode_record(record: bytes, *, sides: int, seq_len: int) -> np.ndarray:
  """Reads a record: int32 [sides, 4, seq_len + 1], tokens, segment ids, positions and targets.

  Raises:
    ValueError: the record has another size.
  """
  fields = np.frombuffer(record, RECORD_DTYPE).reshape(sides, _FIELDS, seq_len + 1)
  return fields.astype(np.int32)


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
    self._rows = OpenRows(_OPEN_ROWS, seq_len + 1, SIDES[:sides], extra)
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
    mask = batches.shift(*(student[:, i] for i in range(_FIELDS))).mask
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
