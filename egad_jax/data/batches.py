"""What a training step eats, and the one place where labels are shifted against tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# NumPy on the host, jax.Array on the devices, shapes alone when a program is lowered.
Array = Any


class Batch(NamedTuple):
  """Packed rows; every field [batch, seq] (or [seq] for one row).

  Attributes:
    tokens: int32, what the model reads; 0 in padding.
    labels: int32, the token that follows; 0 where `mask` is False.
    positions: int32, from 0 in each segment.
    segment_ids: int32, 1, 2, … for the pieces of documents in the row, 0 for padding. Attention
      stays within a segment.
    mask: bool, True where the label counts.
  """

  tokens: Array
  labels: Array
  positions: Array
  segment_ids: Array
  mask: Array


def shift(
  row_tokens: np.ndarray,
  row_segment_ids: np.ndarray,
  row_positions: np.ndarray,
  row_targets: np.ndarray,
) -> Batch:
  """Turns packed rows of seq + 1 tokens into tokens and next-token labels.

  Args:
    row_tokens: int32 [..., seq + 1].
    row_segment_ids: int32 [..., seq + 1], 0 for padding.
    row_positions: int32 [..., seq + 1].
    row_targets: [..., seq + 1], nonzero where the token is worth predicting.

  Returns:
    A Batch of [..., seq] arrays. A label counts when it continues the segment of its token and
    is a target, so the first token of a segment never is a label.

  >>> batch = shift(*np.array([[7, 8, 9, 0], [1, 1, 2, 0], [0, 1, 0, 0], [1, 1, 1, 0]], np.int32))
  >>> batch.labels.tolist(), batch.mask.tolist()
  ([8, 0, 0], [True, False, False])
  """
  segment_ids, following = row_segment_ids[..., :-1], row_segment_ids[..., 1:]
  mask = (segment_ids == following) & (segment_ids != 0) & (row_targets[..., 1:] != 0)
  return Batch(
    tokens=row_tokens[..., :-1],
    labels=np.where(mask, row_tokens[..., 1:], 0).astype(np.int32),
    positions=row_positions[..., :-1],
    segment_ids=segment_ids,
    mask=mask,
  )


def stack(rows: Sequence[Batch]) -> Batch:
  """Stacks rows of [seq] into a batch of [len(rows), seq]."""
  return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def empty_row(seq_len: int) -> Batch:
  """A row that trains nothing: all padding."""
  zeros = np.zeros(seq_len, np.int32)
  return Batch(zeros, zeros, zeros, zeros, np.zeros(seq_len, bool))
