"""Counts train documents that are almost the same as a held-out document."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import rensa

from egad_jax.data import spans

# Two documents are near-duplicates if their sets of runs of five words have at least this in common
# (Jaccard similarity), as MinHash estimates it.
THRESHOLD = 0.8
# Part of the cache key: raise it with any change to what is found.
VERSION = 1
_WORDS = 5
# 128 hashes estimate 0.8 with a standard deviation of 0.035. In 32 bands of 4 a pair of similarity
# 0.8 is missed with a chance of 5e-8.
_HASHES, _BANDS, _SEED = 128, 32, 0
# The most held-out documents that are kept for comparison, some 4 KiB each with the index.
_MOST = 20_000
_TOGETHER = 256
_EXAMPLES = 3


class Search:
  """Compares train documents with the held-out documents that it saw before."""

  def __init__(self) -> None:
    self._index = rensa.RMinHashLSH(THRESHOLD, _HASHES, _BANDS)
    self._held_out: list[Any] = []
    self._beginnings: list[str] = []
    self._compared = self._found = 0
    self._examples: list[list[str]] = []

  def watch(self, records: Iterable[bytes], *, is_train: bool) -> Iterator[bytes]:
    """Passes stored documents on; looks at them on the way.

    Args:
      records: documents as `spans.dump` writes them; held-out ones must come first.
      is_train: whether they are compared, or remembered.
    """
    iterator = iter(records)
    while batch := list(itertools.islice(iterator, _TOGETHER)):
      if is_train or len(self._held_out) < _MOST:
        texts = [spans.text_of(spans.load(record)) for record in batch]
        hashes = rensa.RMinHash.from_token_sets(list(map(shingles, texts)), _HASHES, _SEED)
        self._compare(texts, hashes) if is_train else self._remember(texts, hashes)
      yield from batch

  def _remember(self, texts: list[str], hashes: list[Any]) -> None:
    self._index.insert_many(hashes, start_key=len(self._held_out))
    self._held_out += hashes
    self._beginnings += [text[:60] for text in texts]

  def _compare(self, texts: list[str], hashes: list[Any]) -> None:
    self._compared += len(texts)
    for text, own, keys in zip(texts, hashes, self._index.query_all(hashes), strict=True):
      near = next((k for k in keys if own.jaccard(self._held_out[k]) >= THRESHOLD), None)
      if near is None:
        continue
      self._found += 1
      if len(self._examples) < _EXAMPLES:
        self._examples.append([text[:60], self._beginnings[near]])

  def result(self) -> dict[str, Any]:
    """What was found; JSON can hold it.

    Returns:
      "near_duplicates", the number of train documents with a near-duplicate in held-out;
      "compared", the number of train documents; "held_out", the number of held-out documents that
      they were compared with; and "examples", the beginnings of a few pairs.
    """
    return {
      "near_duplicates": self._found,
      "compared": self._compared,
      "held_out": len(self._held_out),
      "examples": self._examples,
    }


def shingles(text: str) -> list[str]:
  """The runs of five words of a text; of a shorter one, all of it.

  >>> shingles("one two three  four five six")
  ['one two three four five', 'two three four five six']
  """
  words = text.split()
  if len(words) <= _WORDS:
    return [" ".join(words)]
  # Slices of one string take less time than to join words again and again.
  text = " ".join(words)
  ends = list(itertools.accumulate(len(word) + 1 for word in words))
  return [text[i : j - 1] for i, j in zip([0, *ends], ends[_WORDS - 1 :], strict=False)]
