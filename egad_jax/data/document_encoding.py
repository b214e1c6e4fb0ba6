"""Turns documents into ids and targets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from egad_jax.data.rust_errors import rust_errors
from egad_jax.data.spans import Document, text_of

if TYPE_CHECKING:
  from egad_jax.data.tokenizer import Tokenizer

CANNOT_ENCODE = (
  "the tokenizer cannot encode this text",
  "Check that the text is valid Unicode and that the tokenizer's files are whole.",
)


class EncodedDocument(NamedTuple):
  """The ids of a document.

  Attributes:
    ids: int32 [ids].
    targets: int32 [ids], 1 where the id is a target.
    text_bytes: int32 [ids], bytes of text that each id stands for, 0 for special tokens; None where
      they were not asked for.
    text: slice of the ids that stand for text; around it are the tokenizer's `prefix_ids` and
      `end_ids`. In a rendered chat the template writes those itself.
  """

  ids: np.ndarray
  targets: np.ndarray
  text_bytes: np.ndarray | None
  text: slice


def encode_documents(
  tokenizer: Tokenizer, documents: Sequence[Document], *, with_bytes: bool
) -> list[EncodedDocument]:
  """Encodes documents on all cores; see `Tokenizer.encode_document`."""
  found: list[EncodedDocument | None] = [None] * len(documents)
  is_quick = [
    not with_bytes and len(each) == 1 and each[0].is_target and not each[0].special
    for each in documents
  ]
  texts = [each[0].text for each, quick in zip(documents, is_quick, strict=True) if quick]
  quick_ids = iter(tokenizer.encode_batch(texts))
  # Stretches of spans that are encoded together, so that a token may reach over their bounds.
  groups = {
    special: [
      tuple(group)
      for each, quick in zip(documents, is_quick, strict=True)
      if not quick
      for key, group in itertools.groupby(each, key=lambda span: span.special)
      if key == special
    ]
    for special in (False, True)
  }
  encoded = {
    special: iter(_encode_groups(tokenizer, group, special, with_bytes))
    for special, group in groups.items()
  }
  for i, (document, quick) in enumerate(zip(documents, is_quick, strict=True)):
    if quick:
      ids = np.asarray(next(quick_ids), np.int32)
      found[i] = _frame(tokenizer, document, ids, np.ones(len(ids), np.int32), None)
      continue
    parts = [
      next(encoded[special]) for special, _ in itertools.groupby(document, key=lambda s: s.special)
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    ids, targets, sizes = columns
    found[i] = _frame(tokenizer, document, ids, targets, sizes if with_bytes else None)
  return found  # type: ignore[return-value] # All are found.


def _frame(
  tokenizer: Tokenizer,
  document: Document,
  ids: np.ndarray,
  targets: np.ndarray,
  sizes: np.ndarray | None,
) -> EncodedDocument:
  """Puts the ids around a text; `sizes` [ids + 1] ends with the bytes behind the last token."""
  if any(span.special for span in document):
    if sizes is not None and len(ids):
      sizes = np.append(sizes[:-2], sizes[-2] + sizes[-1])
    return EncodedDocument(ids, targets, sizes, slice(0, len(ids)))
  prefix, ends = tokenizer.prefix_ids, tokenizer.end_ids
  text = slice(len(prefix), len(prefix) + len(ids))
  found = np.zeros((2, len(prefix) + len(ids) + len(ends)), np.int32)
  found[0, : text.start], found[0, text], found[0, text.stop :] = prefix, ids, ends
  # The end follows the last text, and is learnt with it.
  found[1, text], found[1, text.stop :] = targets, document[-1].is_target
  if sizes is not None:
    # Bytes behind the last token count for the first of the ids at the end.
    sizes = np.pad(sizes, (len(prefix), len(ends) - 1))
  return EncodedDocument(found[0], found[1], sizes, text)


def _encode_groups(
  tokenizer: Tokenizer, groups: Sequence[Document], special: bool, with_bytes: bool
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """(ids, targets, bytes of each id and, last, behind them) of each stretch of spans."""
  texts = [text_of(group) for group in groups]
  with rust_errors(*CANNOT_ENCODE):
    encodings = tokenizer.backend(allow_special=special).encode_batch(
      texts, add_special_tokens=False
    )
  special_ids = np.asarray(sorted(tokenizer.special_tokens) if special else [], np.int32)
  found = []
  for group, text, encoding in zip(groups, texts, encodings, strict=True):
    ids = np.asarray(encoding.ids, np.int32)
    sizes = np.zeros(len(ids) + 1, np.int32)
    if with_bytes:
      sizes = byte_sizes(text, encoding)
      sizes[:-1][np.isin(ids, special_ids)] = 0
    found.append((ids, _targets(group, encoding), sizes))
  return found


def _targets(group: Document, encoding: Any) -> np.ndarray:
  """int32 [ids], 1 for each id with a character of a target in it, as transformers marks them."""
  if all(span.is_target for span in group):
    return np.ones(len(encoding.ids), np.int32)
  lengths = [len(span.text) for span in group]
  is_target = np.repeat([span.is_target for span in group], lengths)
  before = np.concatenate([[0], np.cumsum(is_target)])
  offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
  # An id without characters of its own goes with the character in front of which it stands.
  ends = np.minimum(np.maximum(offsets[:, 1], offsets[:, 0] + 1), len(is_target))
  return (before[ends] > before[np.minimum(offsets[:, 0], len(is_target))]).astype(np.int32)


def byte_sizes(text: str, encoding: Any) -> np.ndarray:
  """Bytes of text of each id, and last those behind the last: int32 [ids + 1].

  They add up to the text's UTF-8 bytes: text that a normalizer drops or shortens counts for the
  token that follows it.
  """
  code_points = np.frombuffer(text.encode("utf-32-le"), "<u4")
  widths = 1 + sum((code_points >= start).astype(int) for start in (0x80, 0x800, 0x10000))
  starts = np.concatenate([[0], np.cumsum(widths)])
  ends = np.array([end for _, end in encoding.offsets], int)
  ends = starts[np.minimum(np.maximum.accumulate(ends), len(text))]
  behind = int(starts[-1] - (ends[-1] if len(ends) else 0))
  return np.append(np.diff(ends, prepend=0), behind).astype(np.int32)
