"""Batches of packed rows; labels are shifted against tokens here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# NumPy on the host, jax.Array on the devices, jax.ShapeDtypeStruct when a program is lowered.
Array = Any


class Batch(NamedTuple):
  """Packed rows; every field but the last two is [batch, seq] (or [seq] for one row).

  Attributes:
    tokens: int32, the model's input ids; 0 in padding.
    labels: int32, the id of the token that follows; 0 where `mask` is False.
    positions: int32, counted from 0 in each segment.
    segment_ids: int32, 1, 2, … for the pieces of documents in the row, 0 for padding. Attention
      stays within a segment.
    mask: bool, True where the label is a target.
    row_numbers: int32 [batch], each row's number in its split, the same in every epoch; -1 for a
      row that only fills a batch. () for one side of a `PairedBatch`.
    attached: tree of a teacher's outputs for these rows, computed elsewhere and split by rows; ()
      if there are none.
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
    """The rows in the student's tokens, without `row_numbers` and `attached`."""
    return self._replace(row_numbers=(), attached=())

  @property
  def teacher_side(self) -> Batch:
    """The rows in the teacher's tokens, which are the student's."""
    return self.student_side


class PairedBatch(NamedTuple):
  """Packed rows of a student and a teacher with different tokenizers, the same text in both.

  An aligned span is a run of tokens on each side that stand for the same bytes. The span arrays
  hold its id wherever one of its tokens is the label, and 0 where the label is masked.

  Attributes:
    student: the rows in the student's tokens.
    teacher: the rows in the teacher's tokens.
    student_spans: int32 [batch, seq], ids from 1 in each row, in the order of the text.
    teacher_spans: int32 [batch, seq], the ids of the same spans for the teacher's labels.
    row_numbers: int32 [batch], as in `Batch`.
    attached: tree of a teacher's outputs, as in `Batch`.
  """

  student: Batch
  teacher: Batch
  student_spans: Array
  teacher_spans: Array
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
    row_tokens: int32 [..., seq + 1], ids.
    row_segment_ids: int32 [..., seq + 1], 0 for padding.
    row_positions: int32 [..., seq + 1], counted from 0 in each segment.
    row_targets: integers [..., seq + 1], nonzero where the token is to be predicted.

  Returns:
    A Batch of [..., seq] arrays. A label is masked unless it continues the segment of its token and
    is a target, so the first token of a segment is never a label.

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
  """Applies `shift` to both sides of a paired row and numbers its spans.

  Args:
    student: int32 [4, seq + 1], the arguments of `shift`; the targets are span ids, which count
      from 1 in each segment.
    teacher: int32 [4, seq + 1], the same for the teacher, with the same span ids.

  Returns:
    A PairedBatch of [seq] arrays, whose spans are numbered from 1 in the order of the text.

  >>> student = np.array([[7, 8, 9, 5, 6], [1, 1, 1, 2, 2], [0, 1, 2, 0, 1], [0, 1, 2, 0, 1]])
  >>> teacher = np.array([[7, 3, 3, 5, 6], [1, 1, 1, 2, 2], [0, 1, 2, 0, 1], [0, 1, 2, 0, 1]])
  >>> shift_pair(student, teacher).student_spans.tolist()
  [1, 2, 0, 3]
  """
  both = (shift(*student), shift(*teacher))
  # Keys order spans by segment, then by id: a segment has fewer spans than a row has tokens.
  keys = [
    np.where(side.mask, side.segment_ids * student.shape[-1] + fields[3, 1:], 0)
    for side, fields in zip(both, (student, teacher), strict=True)
  ]
  _, numbers = np.unique(np.concatenate([[0], *keys]), return_inverse=True)
  spans = numbers[1:].astype(np.int32).reshape(2, -1)
  return PairedBatch(*both, *spans)


def make_row(fields: np.ndarray, number: int = -1) -> AnyBatch:
  """Makes a row from the fields of a record.

  Args:
    fields: int32 [sides, 4, seq + 1], as `packed_rows.decode_record` returns them.
    number: the row's number in its split; -1 for a row that only fills a batch.

  Returns:
    A Batch of [seq] arrays, or a PairedBatch if there are two sides.
  """
  row = shift(*fields[0]) if len(fields) == 1 else shift_pair(*fields)
  return row._replace(row_numbers=np.int32(number))


def stack(rows: Sequence[Any]) -> Any:
  """Stacks rows of [seq] arrays into a batch of [len(rows), seq], whether paired or not."""
  if not isinstance(rows[0], tuple):
    return np.stack(rows)
  return type(rows[0])(*map(stack, zip(*rows, strict=True)))


def empty_row(seq_len: int, *, sides: int = 1) -> AnyBatch:
  """A row of padding alone, which has no target."""
  return make_row(np.zeros((sides, 4, seq_len + 1), np.int32))
