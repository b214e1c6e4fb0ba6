"""The seam between a teacher and the student's programs.

A teacher computes its outputs inside the student's step, or elsewhere, and then attaches them to
the batches. Everything that trains or evaluates asks `Teacher.outputs` and never how they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax

from egad_jax.data.batches import AnyBatch
from egad_jax.types import Params


class Hidden(NamedTuple):
  """A teacher seen through its last hidden states: exact, and small next to its logits.

  Attributes:
    hidden: [batch, seq, dim] after the final norm, in the teacher's compute dtype.
    unembedding: [vocab, dim].
    taps: [num_taps, batch, seq, dim], the residual stream at the layers asked for.
  """

  hidden: jax.Array
  unembedding: jax.Array
  taps: jax.Array


class PlacedTeacher(Protocol):
  """A teacher whose parameters are on the devices."""

  @property
  def params(self) -> Params:
    """What `Teacher.outputs` reads, on the student's devices."""
    ...

  @property
  def model_params(self) -> Params:
    """The parameters of the whole model, for generation."""
    ...

  def attach(self, batches: Iterable[AnyBatch], accumulation: int = 1) -> Iterator[AnyBatch]:
    """Yields each batch with what the teacher computed elsewhere in `attached`.

    Args:
      batches: on the student's devices.
      accumulation: parts that the teacher may take a batch in, one after the other.
    """
    ...


class Teacher(Protocol):
  """Where the teacher's outputs come from; touches no device before `place`."""

  @property
  def meshes(self) -> tuple[jax.sharding.Mesh, ...]:
    """Meshes of the devices that it uses besides the student's; empty for none."""
    ...

  def abstract_params(self) -> Params:
    """Shapes, dtypes and shardings of what `outputs` reads."""
    ...

  def abstract_attached(self, batch: AnyBatch) -> Any:
    """Shapes, dtypes and shardings of what `PlacedTeacher.attach` adds to a batch of these."""
    ...

  def place(self) -> PlacedTeacher:
    """Puts the parameters on the devices."""
    ...

  def outputs(self, params: Params, batch: AnyBatch, *, with_taps: bool = False) -> Hidden:
    """The teacher's outputs for a batch, without gradient; traced inside the student's programs.

    Args:
      params: as `abstract_params` describes them.
      batch: as `PlacedTeacher.attach` yields it, or a micro-batch of that.
      with_taps: whether the features of the teacher's taps are wanted; otherwise there may be none.
    """
    ...
