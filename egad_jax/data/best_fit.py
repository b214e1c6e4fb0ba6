"""Best-fit packing into a fixed number of open rows.

The rows are those of grain's `BestFitPackIterDataset`, bit for bit (a test compares them). They are
made here because that takes some 100 µs of Python for each piece, several times as long as to
tokenize a short document, and cannot be continued from its state without reading all again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class OpenRows:
  """Rows that are filled side by side, and written together when a piece fits into none."""

  def __init__(
    self, num_rows: int, length: int, sides: Sequence[str], extra: Sequence[str]
  ) -> None:
    """Begins with empty rows.

    Args:
      num_rows: number of rows that are open at a time.
      length: number of tokens of a row.
      sides: names of the tokens of a piece; each goes with its `{side}_targets`.
      extra: names of further arrays of a piece, as long as its first side.
    """
    self._sides, self._extra = tuple(sides), tuple(extra)
    self._length = length
    self._shape = (num_rows, len(sides), 4, length)
    # A piece goes into the fullest row that has room for all of its arrays.
    self._weights = np.array([2 + len(extra), *[2] * (len(sides) - 1)])
    self._begin()

  def _begin(self) -> None:
    self._fields = np.zeros(self._shape, np.int32)
    self._extras = np.zeros((self._shape[0], len(self._extra), self._length), np.int32)
    self._filled = np.zeros((self._shape[0], len(self._sides)), np.int64)
    self._segments = [0] * self._shape[0]

  def add(self, piece: Mapping[str, np.ndarray]) -> bool:
    """Puts a piece into the fullest row that has room on all sides; returns whether one has.

    Raises:
      ValueError: the piece is longer than a row.
    """
    sizes = [len(piece[side]) for side in self._sides]
    if max(sizes) > self._length:
      raise ValueError(f"a piece of {max(sizes)} tokens does not fit into {self._length}")
    fits = np.all(self._filled + sizes <= self._length, axis=1)
    row = int(np.argmax(np.where(fits, self._filled @ self._weights, -1)))
    if not fits[row]:
      return False
    self._segments[row] += 1
    for i, (side, size) in enumerate(zip(self._sides, sizes, strict=True)):
      start = int(self._filled[row, i])
      into = self._fields[row, i, :, start : start + size]
      into[0] = piece[side]
      into[1] = self._segments[row]
      into[2] = np.arange(size)
      into[3] = piece[f"{side}_targets"]
    start = int(self._filled[row, 0])
    for i, name in enumerate(self._extra):
      self._extras[row, i, start : start + sizes[0]] = piece[name]
    self._filled[row] += sizes
    return True

  def take(self) -> tuple[np.ndarray, np.ndarray]:
    """Takes the rows that hold anything, and begins with empty ones.

    Returns:
      int32 [rows, sides, 4, length], tokens, segment ids, positions and targets, and the further
      arrays, int32 [rows, extra, length].
    """
    used = sum(count > 0 for count in self._segments)
    taken = self._fields[:used], self._extras[:used]
    self._begin()
    return taken
