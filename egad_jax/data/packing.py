"""Tokenizes a corpus and packs it, once, into rows of fixed length on disk."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging
from etils import epath

from egad_jax import progress
from egad_jax.data import batches, cached_directory, shards
from egad_jax.data.corpus import HELD_OUT, SPLITS, TRAIN, Corpus
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError

# Part of the fingerprint: raise it with any change to the content of rows, alignment included.
_VERSION = 3
_DOCUMENTS_AT_ONCE = 64
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
PiecesOf = Callable[[list[Mapping[str, bytes]]], list[Piece]]


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


def prepare_rows(
  corpus: Corpus, tokenizer: Tokenizer, *, seq_len: int, directory: epath.PathLike
) -> Rows:
  """Packs a corpus into rows, unless the cache holds them already.

  A document becomes `tokenizer.prefix_ids`, its tokens and `tokenizer.end_ids`, cut into pieces of
  seq_len + 1 tokens that overlap by one: so each token is a target exactly once, except the prefix
  and, if there is none, the document's first token. A document without tokens has no piece.
  Nothing here is random; `pipeline` shuffles the rows for training.

  Args:
    corpus: the documents to pack.
    tokenizer: the tokenizer whose ids the rows hold.
    seq_len: the most targets of a row, at least 1.
    directory: the cache directory; the rows get a directory of their own there, named after their
      fingerprint.

  Returns:
    The rows, whose files have been checked.

  Raises:
    InputError: `seq_len` is not positive, files are damaged, or the cache cannot be written.
  """
  return build_rows_once(
    corpus,
    (tokenizer,),
    functools.partial(_pack_split, corpus, tokenizer, seq_len),
    seq_len=seq_len,
    directory=directory,
  )


def build_rows_once(
  corpus: Corpus,
  tokenizers: Sequence[Tokenizer],
  pack: Callable[[str, epath.Path], dict[str, Any]],
  *,
  seq_len: int,
  directory: epath.PathLike,
) -> Rows:
  """Builds the rows' directory in the cache, unless it is there, and opens it.

  Args:
    corpus: the documents to pack.
    tokenizers: the student's tokenizer, and the teacher's if it has its own.
    pack: `(split, directory) -> totals` writes the rows of a split and returns what `write_rows`
      does, and "lost_bytes".
    seq_len: the most targets of a row, at least 1.
    directory: the cache directory.

  Raises:
    InputError: `seq_len` is not positive, files are damaged, or the cache cannot be written.
  """
  if seq_len < 1:
    raise InputError(f"seq_len ({seq_len}) must be at least 1.")
  fingerprints = [tokenizer.fingerprint for tokenizer in tokenizers]
  fingerprint = cached_directory.digest(
    [_VERSION, _OPEN_ROWS, corpus.fingerprint, *fingerprints, seq_len]
  )

  def build(target: epath.Path) -> dict[str, Any]:
    return {
      "fingerprint": fingerprint,
      "corpus": corpus.fingerprint,
      "tokenizers": fingerprints,
      "seq_len": seq_len,
      "splits": {split: pack(split, target) for split in SPLITS},
    }

  return open_rows(
    cached_directory.build_once(epath.Path(directory), f"rows-{fingerprint[:16]}", build)
  )


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
    lost_bytes={split: splits[split]["lost_bytes"] for split in SPLITS},
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


class _LostBytes:
  """Adds up the bytes of text for which the tokenizer has no token."""

  def __init__(self, tokenizer: Tokenizer) -> None:
    self._token_bytes = tokenizer.token_bytes()
    self.total = 0

  def add(self, text: bytes, ids: Sequence[int]) -> None:
    self.total += max(0, len(text) - int(self._token_bytes[np.asarray(ids, np.int64)].sum()))


def encode(
  tokenizer: Tokenizer, texts: Sequence[bytes], split: str
) -> list[tuple[list[int], np.ndarray | None]]:
  """Encodes documents, UTF-8.

  Returns:
    The ids of each document. For held-out documents also int32 [ids + 1], the bytes of text of each
    token and, last, those behind the last token; None for train documents.
  """
  decoded = [text.decode() for text in texts]
  # Only evaluations need bytes, and finding them takes time.
  if split != HELD_OUT:
    return [(ids, None) for ids in tokenizer.encode_batch(decoded)]
  return [
    (ids, np.asarray([*sizes, behind], np.int32))
    for ids, sizes, behind in tokenizer.encode_batch_with_bytes(decoded)
  ]


def around(tokenizer: Tokenizer, text_bytes: np.ndarray) -> np.ndarray:
  """Pads `encode`'s bytes of a text to a document's tokens, with 0 for the ids around the text.

  The bytes behind the last token count for the first of the `end_ids`.
  """
  return np.pad(text_bytes, (len(tokenizer.prefix_ids), len(tokenizer.end_ids) - 1))


def _pieces(
  tokenizer: Tokenizer, ids: Sequence[int], text_bytes: np.ndarray | None, seq_len: int
) -> list[Piece]:
  """The pieces of one document, in which the prefix is no target."""
  if not ids:
    return []
  tokens = np.asarray([*tokenizer.prefix_ids, *ids, *tokenizer.end_ids], np.int32)
  targets = np.ones(len(tokens), np.int32)
  targets[: len(tokenizer.prefix_ids)] = 0
  fields = {"student": tokens, "student_targets": targets}
  if text_bytes is not None:
    fields[BYTES] = around(tokenizer, text_bytes)
  columns = [cut(values, seq_len) for values in fields.values()]
  pieces = [dict(zip(fields, column, strict=True)) for column in zip(*columns, strict=True)]
  return [piece for piece in pieces if piece["student_targets"][1:].any()]


class _Flatten(grain.experimental.FlatMapTransform):
  """Flattens lists of pieces."""

  max_fan_out = 2**31

  def flat_map(self, element: list[Piece]) -> list[Piece]:
    return element


def _pack_split(
  corpus: Corpus, tokenizer: Tokenizer, seq_len: int, split: str, target: epath.Path
) -> dict[str, Any]:
  lost = _LostBytes(tokenizer)

  def pieces_of(examples: list[Mapping[str, bytes]]) -> list[Piece]:
    texts = [example["text"] for example in examples]
    pieces = []
    for text, (ids, text_bytes) in zip(texts, encode(tokenizer, texts, split), strict=True):
      lost.add(text, ids)
      pieces += _pieces(tokenizer, ids, text_bytes, seq_len)
    return pieces

  written = write_rows(corpus, split, pieces_of, target, sides=1, seq_len=seq_len)
  if lost.total:
    logging.warning(
      "%s: the vocabulary has no token for %d bytes of the text; they are left out.",
      split,
      lost.total,
    )
  return written | {"lost_bytes": lost.total}


def write_rows(
  corpus: Corpus, split: str, pieces_of: PiecesOf, target: epath.Path, *, sides: int, seq_len: int
) -> dict[str, Any]:
  """Packs the pieces of a split's documents and writes the rows.

  Args:
    corpus: the corpus that holds the documents.
    split: "train" or "held_out".
    pieces_of: documents -> pieces, each of at most seq_len + 1 tokens on every side. It is called
      in one thread, in order.
    target: the directory that gets the shards.
    sides: number of sides of the pieces, 1 or 2. A row takes a piece if all sides have room for it.
    seq_len: the most targets of a row.

  Returns:
    {"shards", "rows", "targets"}: the files with their numbers of records, and the totals; for the
    held-out split also "row_bytes", see `Rows.held_out_bytes`.
  """
  totals: dict[str, Any] = {"rows": 0, "targets": 0}
  if split == HELD_OUT:
    totals["row_bytes"] = []

  def records(phase: progress.Phase) -> Iterator[bytes]:
    def counted(examples: list[Mapping[str, bytes]]) -> list[Piece]:
      pieces = pieces_of(examples)
      phase.update(len(examples), "documents")
      return pieces

    for row in _packed(corpus, split, counted, SIDES[:sides], seq_len):
      fields = np.stack(
        [
          [row[side], row[f"{side}_segment_ids"], row[f"{side}_positions"], row[f"{side}_targets"]]
          for side in SIDES[:sides]
        ]
      )
      totals["rows"] += 1
      mask = batches.shift(*fields[0]).mask
      totals["targets"] += int(np.count_nonzero(mask))
      if split == HELD_OUT:
        totals["row_bytes"].append(int(row[BYTES][1:][mask].sum()))
      yield fields.astype(RECORD_DTYPE).tobytes()

  name = f"tokenizing and packing, {split.replace('_', '-')}"
  with progress.phase(name, corpus.num_documents[split]) as phase:
    written = shards.write_shards(target, split, records(phase))
  return {"shards": written, **totals}


def _packed(
  corpus: Corpus, split: str, pieces_of: PiecesOf, sides: Sequence[str], seq_len: int
) -> Iterator[Piece]:
  lists = (
    grain.MapDataset.source(corpus.data_source(split))
    .batch(_DOCUMENTS_AT_ONCE, batch_fn=list)
    .map(pieces_of)
    # One thread, so that the sum of lost bytes needs no lock; tokenizing uses all cores itself.
    .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
  )
  targets = tuple(f"{side}_targets" for side in sides) + (BYTES,) * (split == HELD_OUT)
  packed = grain.experimental.BestFitPackIterDataset(
    grain.experimental.FlatMapIterDataset(lists, _Flatten()),
    length_struct=dict.fromkeys((*sides, *targets), seq_len + 1),
    num_packing_bins=_OPEN_ROWS,
    shuffle_bins=False,
    meta_features=targets,
  )
  return iter(packed)
