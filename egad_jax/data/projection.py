"""The sparse matrix that projects distributions from a student's vocabulary to a teacher's.

It follows X-Token (arXiv 2605.21699): each student token is spelled in teacher tokens and vice
versa, and the first piece gets most of the weight. Tokens are compared as the bytes that they stand
for, whatever way a vocabulary writes them. Where the paper is silent or this differs:

- Among entries of equal weight in a row, the student token's own spelling is kept first, then the
  lowest id; there is no "scale trick" on the last entry.
- A token that the other tokenizer's `encode` does not spell (half a character, a space put in
  front) is spelled greedily, longest piece first.
- A row without an entry stays zero: its probability is lost ("leak"), and the loss normalizes the
  rest. `audit` counts such rows.
"""

from __future__ import annotations

import difflib
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from egad_jax import progress
from egad_jax.data import cached_directory
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError

# Part of the fingerprint: raise it with any change to the projection.
_VERSION = 1
_FILE, _AUDIT_FILE = "projection.npz", "audit.json"
_MAX_PIECES = 4
# The paper's threshold, 0.3, pairs <reponame> with <|endoftext|>.
_LEAST_SIMILARITY = 0.5
_EXAMPLES = 20
_ROLES = ("document_end_id", "eos_id", "bos_id", "pad_id", "unk_id")


class Projection(NamedTuple):
  """A sparse matrix, row by row.

  Attributes:
    ids: int32 [student_vocab, k], teacher ids, heaviest first; 0 in unused entries.
    weights: float32 [student_vocab, k], 0 in unused entries; a row sums to 1, or to 0 if the token
      has no counterpart.
  """

  ids: np.ndarray
  weights: np.ndarray


def prepare_projection(
  student: Tokenizer,
  teacher: Tokenizer,
  *,
  top_k: int = 4,
  directory: epath.PathLike,
  counts: np.ndarray | None = None,
) -> Projection:
  """Builds the projection of two tokenizers, unless the cache holds it, and logs its coverage.

  Args:
    student: the tokenizer whose ids number the rows.
    teacher: the tokenizer whose ids the entries hold.
    top_k: number of entries of a row, at least 1.
    directory: the cache directory; the projection gets a directory of its own there, named after
      the fingerprint of both tokenizers, with its `audit` in audit.json.
    counts: [student_vocab], the number of times that each student token occurs in a corpus. The
      audit with shares of the corpus is written to corpus-*/audit.json there. None leaves it out.

  Raises:
    InputError: an argument is out of range, the file is damaged, or the cache cannot be written.
  """
  fingerprint = cached_directory.digest([_VERSION, student.fingerprint, teacher.fingerprint, top_k])

  def build(target: epath.Path) -> dict[str, Any]:
    with progress.phase("matching the two vocabularies"):
      projection = build_projection(student, teacher, top_k=top_k)
    with (target / _FILE).open("wb") as file:
      np.savez(file, ids=projection.ids, weights=projection.weights)
    _write(target, audit(projection, student, teacher))
    return {"fingerprint": fingerprint, "top_k": top_k}

  cached = cached_directory.build_once(
    epath.Path(directory), f"projection-{fingerprint[:16]}", build
  )
  projection = _read(cached / _FILE)
  report = audit(projection, student, teacher, counts)
  if counts is not None:
    name = f"corpus-{cached_directory.digest(np.asarray(counts).tolist())[:16]}"
    cached_directory.build_once(cached, name, lambda target: _write(target, report))
  _log(report)
  return projection


def build_projection(student: Tokenizer, teacher: Tokenizer, *, top_k: int = 4) -> Projection:
  """Builds the projection that the module describes.

  Args:
    student: the tokenizer whose ids number the rows.
    teacher: the tokenizer whose ids the entries hold.
    top_k: number of entries of a row, at least 1.

  Raises:
    InputError: `top_k` is not positive.

  >>> student = Tokenizer.train(["ab ab ab"], vocab_size=259)
  >>> teacher = Tokenizer.train(["cd cd cd"], vocab_size=259)
  >>> projection = build_projection(student, teacher)
  >>> ab, = student.encode("ab")
  >>> [teacher.id_to_token(i) for i in projection.ids[ab, :2]]
  ['a', 'b']
  >>> [round(float(weight), 3) for weight in projection.weights[ab]]
  [0.909, 0.091, 0.0, 0.0]
  """
  if top_k < 1:
    raise InputError(f"top_k ({top_k}) must be at least 1.")
  student_pieces, teacher_pieces = student.token_pieces(), teacher.token_pieces()
  forward = _spellings(student_pieces, teacher, teacher_pieces)
  backward = _spellings(teacher_pieces, student, student_pieces)[:, [1, 0, 2]]
  entries = np.concatenate([forward, backward])
  own = np.concatenate([np.ones(len(forward)), np.zeros(len(backward))])
  # Equal entries of both directions add up; the sum counts as the student's own spelling if one is.
  keys = (entries[:, 0] * teacher.vocab_size + entries[:, 1]).astype(np.int64)
  keys, places = np.unique(keys, return_inverse=True)
  weights = np.bincount(places, entries[:, 2], len(keys))
  own = np.bincount(places, own, len(keys)) > 0
  rows, ids = np.divmod(keys, teacher.vocab_size)
  # Rounded, so that weights that differ only in rounding tie.
  order = np.lexsort((ids, ~own, -weights.round(9), rows))
  rows, ids, weights = rows[order], ids[order], weights[order]
  rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
  kept = rank < top_k
  projection = Projection(
    np.zeros((student.vocab_size, top_k), np.int32),
    np.zeros((student.vocab_size, top_k), np.float32),
  )
  projection.ids[rows[kept], rank[kept]] = ids[kept]
  total = np.bincount(rows[kept], weights[kept], student.vocab_size)
  projection.weights[rows[kept], rank[kept]] = weights[kept] / total[rows[kept]]
  for row, index in (
    _equal_tokens(student_pieces, teacher_pieces) | _special_pairs(student, teacher)
  ).items():
    projection.ids[row], projection.weights[row] = 0, 0
    projection.ids[row, 0], projection.weights[row, 0] = index, 1
  return projection


def audit(
  projection: Projection,
  student: Tokenizer,
  teacher: Tokenizer,
  counts: np.ndarray | None = None,
) -> dict[str, Any]:
  """Reports the coverage of a projection.

  Args:
    projection: the projection of the two tokenizers.
    student: the tokenizer whose ids number the rows.
    teacher: the tokenizer whose ids the entries hold.
    counts: [student_vocab], the number of times that each student token occurs in a corpus; None
      leaves out the shares of a corpus.

  Returns:
    A report that JSON can hold: `student_vocab` and `teacher_vocab`, the numbers of ids; `rows`,
    the numbers of rows that are "exact" (one teacher token of the same bytes), "single" (one other
    teacher token), "multi" or "unmapped"; `teacher_reachable`, the number of teacher ids in some
    row; `unmapped`, the spellings of up to 20 unmapped tokens, the most frequent first. With
    `counts` also `corpus`, the share of its tokens in each kind of row, and `covered`, the share
    that is not unmapped.

  Raises:
    InputError: `counts` has another shape.
  """
  student_pieces, teacher_pieces = student.token_pieces(), teacher.token_pieces()
  entries = np.count_nonzero(projection.weights, axis=1)
  first = projection.ids[:, 0].tolist()
  equal = np.array(
    [bool(p) and p == teacher_pieces[i] for p, i in zip(student_pieces, first, strict=True)]
  )
  kinds = {
    "exact": (entries == 1) & equal,
    "single": (entries == 1) & ~equal,
    "multi": entries > 1,
    "unmapped": entries == 0,
  }
  if counts is None:
    frequency = np.zeros(student.vocab_size)
  elif np.shape(counts) == (student.vocab_size,):
    frequency = np.asarray(counts, np.float64)
  else:
    raise InputError(
      f"counts must be one for each of the student's {student.vocab_size} tokens, got shape"
      f" {np.shape(counts)}."
    )
  unmapped = np.flatnonzero(kinds["unmapped"])
  unmapped = unmapped[np.argsort(-frequency[unmapped], kind="stable")][:_EXAMPLES]
  report: dict[str, Any] = {
    "student_vocab": student.vocab_size,
    "teacher_vocab": teacher.vocab_size,
    "rows": {kind: int(rows.sum()) for kind, rows in kinds.items()},
    "teacher_reachable": len(np.unique(projection.ids[projection.weights > 0])),
    "unmapped": [student.id_to_token(int(i)) for i in unmapped],
  }
  if counts is not None:
    total = max(1.0, frequency.sum())
    shares = {kind: float(frequency[rows].sum() / total) for kind, rows in kinds.items()}
    report |= {"corpus": shares, "covered": 1 - shares["unmapped"]}
  return report


def _read(path: epath.Path) -> Projection:
  try:
    with path.open("rb") as file, np.load(file) as arrays:
      return Projection(arrays["ids"], arrays["weights"])
  # zipfile and numpy raise any of these for a truncated or foreign file.
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise cached_directory.damaged(path, f"cannot be read ({error})") from error


def _write(target: epath.Path, report: dict[str, Any]) -> dict[str, Any]:
  (target / _AUDIT_FILE).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
  return report["rows"]


def _log(report: Mapping[str, Any]) -> None:
  rows = ", ".join(f"{count} {kind}" for kind, count in report["rows"].items())
  logging.info(
    "projection of the student's %d tokens: %s; %d of the teacher's %d tokens can be reached.",
    report["student_vocab"],
    rows,
    report["teacher_reachable"],
    report["teacher_vocab"],
  )
  if "covered" in report:
    shares = ", ".join(f"{share:.2%} {kind}" for kind, share in report["corpus"].items())
    logging.info("of the corpus' tokens: %s.", shares)


def _spellings(pieces: Sequence[bytes], other: Tokenizer, others: Sequence[bytes]) -> np.ndarray:
  """Spells tokens in the other vocabulary; returns float64 [n, 3] of (id, other id, weight)."""
  ids = [index for index, piece in enumerate(pieces) if piece]
  # Half a character becomes U+FFFD here; that spelling has other bytes and is discarded below.
  encoded = other.encode_batch([pieces[index].decode(errors="replace") for index in ids])
  index_of = _by_bytes(others)
  longest = max(map(len, index_of), default=0)
  entries = []
  for index, spelling in zip(ids, encoded, strict=True):
    if b"".join(others[i] for i in spelling) != pieces[index]:
      spelling = _greedy(pieces[index], index_of, longest)
    spelling = spelling[:_MAX_PIECES]
    weights = 0.9 * 0.1 ** np.arange(len(spelling))
    entries += [(index, *e) for e in zip(spelling, weights / weights.sum(), strict=True)]
  return np.array(entries, np.float64).reshape(-1, 3)


def _greedy(text: bytes, index_of: Mapping[bytes, int], longest: int) -> list[int]:
  """Spells text from the left, always in the longest piece; [] if no piece fits somewhere."""
  spelling, start = [], 0
  while start < len(text):
    ends = range(min(len(text), start + longest), start, -1)
    end = next((end for end in ends if text[start:end] in index_of), None)
    if end is None:
      return []
    spelling.append(index_of[text[start:end]])
    start = end
  return spelling


def _by_bytes(pieces: Sequence[bytes]) -> dict[bytes, int]:
  """Token bytes -> id; the larger id if two tokens have the same bytes, such as "A" and <0x41>."""
  return {piece: index for index, piece in enumerate(pieces) if piece}


def _equal_tokens(
  student_pieces: Sequence[bytes], teacher_pieces: Sequence[bytes]
) -> dict[int, int]:
  index_of = _by_bytes(teacher_pieces)
  return {i: index_of[piece] for i, piece in enumerate(student_pieces) if piece in index_of}


def _special_pairs(student: Tokenizer, teacher: Tokenizer) -> dict[int, int]:
  """Student id -> teacher id of special tokens: by role, else by similarity of spelling."""
  ours, theirs = student.special_tokens, teacher.special_tokens
  pairs = {}
  for index, token in ours.items():
    similar = max(theirs, key=lambda i: (_similarity(token, theirs[i]), -i), default=None)
    if similar is not None and _similarity(token, theirs[similar]) >= _LEAST_SIMILARITY:
      pairs[index] = similar
  by_role: dict[int, int] = {}
  for role in _ROLES:
    index, other = getattr(student, role), getattr(teacher, role)
    if index in ours and other in theirs:
      by_role.setdefault(index, other)
  return pairs | by_role


def _similarity(token: str, other: str) -> float:
  """Similarity of two special tokens' spellings, in [0, 1], without brackets and bars."""
  token, other = ("".join(filter(str.isalnum, t.lower())) or t for t in (token, other))
  shared = len(set(token) & set(other)) / max(1, len(set(token) | set(other)))
  return 0.6 * difflib.SequenceMatcher(None, token, other, autojunk=False).ratio() + 0.4 * shared
