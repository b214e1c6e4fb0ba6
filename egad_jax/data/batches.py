"""What a training step eats, and the one place where labels are shifted against tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# NumPy on the host, jax.Array on the devices, shapes alone when a program is lowered.
Array = Any


class Batch(NamedTuple):
  """Packed rows; every field but the last two [batch, seq] (or [seq] for one row).

  Attributes:
    tokens: int32, what the model reads; 0 in padding.
    labels: int32, the token that follows; 0 where `mask` is False.
    positions: int32, from 0 in each segment.
    segment_ids: int32, 1, 2, … for the pieces of documents in the row, 0 for padding. Attention
      stays within a segment.
    mask: bool, True where the label counts.
    row_numbers: int32 [batch], each row's number in its split, the same in every epoch; -1 for a
      row that only fills a batch. () for one side of a `PairedBatch`.
    attached: what a teacher computed elsewhere, split by rows; () for nothing.
  """

  tokens: Array
  labels: Array
  positions: Array
  segment_ids: Array
  mask: Array
  row_numbers: Array = ()
  attached: Any = ()

  @property
  def student_side(self) -> Batch:
    """The rows in the student's tokens: the fields of [batch, seq] alone."""
    return self._replace(row_numbers=(), attached=())

  @property
  def teacher_side(self) -> Batch:
    """The rows in the teacher's tokens: the same."""
    return self.student_side


class PairedBatch(NamedTuple):
  """Packed rows of a student and a teacher with different tokenizers, the same text in both.

  A chunk is a run of tokens on each side that stand for the same bytes. Its id is at the places
  that predict its tokens; 0 is a place whose label is masked.

  Attributes:
    student: in the student's tokens.
    teacher: in the teacher's.
    student_chunks: int32 [batch, seq], ids from 1 in each row, in the order of the text.
    teacher_chunks: the same chunks at the teacher's places.
    row_numbers: as in `Batch`.
    attached: as in `Batch`.
  """

  student: Batch
  teacher: Batch
  student_chunks: Array
  teacher_chunks: Array
  row_numbers: Array = ()
  attached: Any = ()

  @property
  def student_side(self) -> Batch:
    """The rows in the student's tokens."""
    return self.student

  @property
  def teacher_side(self) -> Batch:
    """The rows in the teacher's tokens."""
    return self.teacher


AnyBatch = Batch | PairedBatch


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


def shift_pair(student: np.ndarray, teacher: np.ndarray) -> PairedBatch:
  """`shift` of both sides of a paired row.

  Args:
    student: int32 [4, seq + 1], the arguments of `shift`; the targets are chunk ids, which count
      from 1 in each segment.
    teacher: likewise, with the same chunks.

  Returns:
    A PairedBatch of [seq] arrays, its chunks numbered from 1 in the order of the text.

  >>> student = np.array([[7, 8, 9, 5, 6], [1, 1, 1, 2, 2], [0, 1, 2, 0, 1], [0, 1, 2, 0, 1]])
  >>> teacher = np.array([[7, 3, 3, 5, 6], [1, 1, 1, 2, 2], [0, 1, 2, 0, 1], [0, 1, 2, 0, 1]])
  >>> shift_pair(student, teacher).student_chunks.tolist()
  [1, 2, 0, 3]
  """
  both = (shift(*student), shift(*teacher))
  # Ordered by segment, then by chunk; a segment has fewer chunks than a row has places.
  keys = [
    np.where(side.mask, side.segment_ids * student.shape[-1] + fields[3, 1:], 0)
    for side, fields in zip(both, (student, teacher), strict=True)
  ]
  _, numbers = np.unique(np.concatenate([[0], *keys]), return_inverse=True)
  chunks = numbers[1:].astype(np.int32).reshape(2, -1)
  return PairedBatch(*both, *chunks)


def make_row(fields: np.ndarray, number: int = -1) -> AnyBatch:
  """The row that a record's fields, int32 [sides, 4, seq + 1], stand for.

  Args:
    fields: of the record.
    number: the row's, see `Batch`.
  """
  row = shift(*fields[0]) if len(fields) == 1 else shift_pair(*fields)
  return row._replace(row_numbers=np.int32(number))


def stack(rows: Sequence[Any]) -> Any:
  """Stacks rows of [seq] into a batch of [len(rows), seq], of either kind."""
  if not isinstance(rows[0], tuple):
    return np.stack(rows)
  return type(rows[0])(*map(stack, zip(*rows, strict=True)))


def empty_row(seq_len: int, *, sides: int = 1) -> AnyBatch:
  """A row that trains nothing: all padding."""
  return make_row(np.zeros((sides, 4, seq_len + 1), np.int32))
