"""The arguments of a distillation head, and what is checked of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from egad_jax.head.teacher import check_outputs, vocabulary_rows
from egad_jax.teachers.outputs import Hidden, Outputs

TokenLoss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
# (student_hidden, student_unembedding, outputs, labels, mask, extras={}, context=()) ->
# (loss, stats)
OutputsHead = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Head:
  """A distillation head, which is called with the teacher's hidden states or with its outputs.

  Attributes:
    of_outputs: `(student_hidden, student_unembedding, outputs, labels, mask, extras={},
      context=()) -> (loss, stats)`: the head as `distillation_head` describes it, but with the
      teacher's outputs, `Hidden` or `TopK`, in the place of its hidden states and unembedding.
  """

  of_outputs: OutputsHead

  def __call__(
    self,
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    teacher_hidden: jax.Array,
    teacher_unembedding: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    extras: Mapping[str, jax.Array] | None = None,
    context: Any = (),
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns (loss, stats), see `distillation_head`."""
    outputs = Hidden(teacher_hidden, teacher_unembedding)
    return self.of_outputs(
      student_hidden, student_unembedding, outputs, labels, mask, extras, context
    )


class Inputs(NamedTuple):
  """The arguments of a head, see `Head.of_outputs`."""

  student_hidden: jax.Array
  student_unembedding: jax.Array
  outputs: Outputs
  labels: jax.Array
  mask: jax.Array
  extras: Mapping[str, jax.Array]
  context: Any


def shared_vocabulary(student_rows: int, teacher_rows: int, vocab_size: int | None) -> int:
  """Returns the number of vocabulary entries that the loss sees.

  Args:
    student_rows: rows of the student's unembedding, padding included.
    teacher_rows: rows of the teacher's unembedding, padding included.
    vocab_size: number of real entries; None when neither unembedding has padding.

  Raises:
    ValueError: the numbers of rows differ and `vocab_size` is None, or it is out of range.
  """
  if vocab_size is None:
    if student_rows != teacher_rows:
      raise ValueError(
        f"student_unembedding has {student_rows} rows and teacher_unembedding {teacher_rows}; "
        "pass vocab_size, the number of entries that both share."
      )
    return student_rows
  if not 1 <= vocab_size <= min(student_rows, teacher_rows):
    raise ValueError(
      f"vocab_size ({vocab_size}) must be between 1 and {min(student_rows, teacher_rows)}, "
      f"the rows that both unembeddings have ({student_rows} and {teacher_rows})."
    )
  return vocab_size


def check_inputs(inputs: Inputs, vocab_size: int | None) -> int:
  """Returns the number of vocabulary entries that the loss sees.

  Raises:
    TypeError: a wrong dtype in a `TopK`.
    ValueError: the first argument whose shape does not fit, by name; see also `shared_vocabulary`.
  """
  hidden, unembedding = inputs.student_hidden, inputs.student_unembedding
  tokens = hidden.shape[:-1]
  if unembedding.ndim != 2 or unembedding.shape[1] != hidden.shape[-1]:
    raise ValueError(
      f"student_unembedding must be [vocab, {hidden.shape[-1]}] to fit student_hidden "
      f"{hidden.shape}; got {unembedding.shape}."
    )
  check_outputs(inputs.outputs, tokens, None)
  per_token = {"labels": inputs.labels, "mask": inputs.mask}
  per_token |= {f"extras[{k!r}]": v for k, v in inputs.extras.items()}
  for name, array in per_token.items():
    if array.shape != tokens:
      raise ValueError(f"{name} must have the shape of the tokens, {tokens}; got {array.shape}.")
  rows = unembedding.shape[0]
  vocab = shared_vocabulary(rows, vocabulary_rows(inputs.outputs, rows), vocab_size)
  check_outputs(inputs.outputs, tokens, vocab)
  return vocab
