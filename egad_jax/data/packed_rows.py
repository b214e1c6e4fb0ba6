"""Packed rows on disk: what a record holds, and a directory of rows in the cache."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from egad_jax.data import cached_directory, shards
from egad_jax.data.corpus import HELD_OUT, SPLITS, TRAIN, Corpus
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError

# Part of the fingerprint: raise it with any change to the content of rows, alignment included.
_VERSION = 4
# Rows that are filled side by side, which decides the content of rows. More of them leave less
# padding but cost time for each piece.
OPEN_ROWS = 64
# A record is little-endian int32 [sides, 4, seq_len + 1]: tokens, segment ids, positions and
# targets of the student's side, then of the teacher's if it has a tokenizer of its own.
FIELDS = 4
RECORD_DTYPE = np.dtype("<i4")
SIDES = ("student", "teacher")
BYTES = "student_bytes"


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
    [_VERSION, OPEN_ROWS, corpus.fingerprint, *fingerprints, seq_len, *options]
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


def decode_record(record: bytes, *, sides: int, seq_len: int) -> np.ndarray:
  """Reads a record: int32 [sides, 4, seq_len + 1], tokens, segment ids, positions and targets.

  Raises:
    ValueError: the record has another size.
  """
  fields = np.frombuffer(record, RECORD_DTYPE).reshape(sides, FIELDS, seq_len + 1)
  return fields.astype(np.int32)
