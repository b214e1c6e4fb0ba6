"""The interface between a teacher and the student's programs.

A teacher computes its outputs inside the student's step, or elsewhere, in which case it attaches
them to the batches. Training and evaluation call `Teacher.outputs` and need not know which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax

from egad_jax.data.batches import AnyBatch
from egad_jax.teachers.outputs import Outputs
from egad_jax.types import Params


class PlacedTeacher(Protocol):
  """A teacher whose parameters are on the devices."""

  @property
  def params(self) -> Params:
    """The parameters that `Teacher.outputs` reads, on the student's devices."""
    ...

  @property
  def model_params(self) -> Params:
    """The parameters of the whole model, for generation."""
    ...

  def attach(self, batches: Iterable[AnyBatch], accumulation: int = 1) -> Iterator[AnyBatch]:
    """Yields each batch with the outputs that the teacher computed elsewhere as `attached`.

    Args:
      batches: global batches on the student's devices.
      accumulation: number of micro-batches, >= 1, that the teacher may split a batch into and
        compute one after the other.
    """
    ...


class Teacher(Protocol):
  """A source of teacher outputs; it touches no device before `place`."""

  @property
  def meshes(self) -> tuple[jax.sharding.Mesh, ...]:
    """Meshes of the devices that the teacher uses besides the student's; empty if none."""
    ...

  def abstract_params(self) -> Params:
    """Shapes, dtypes and shardings of the parameters that `outputs` reads."""
    ...

  def abstract_attached(self, batch: AnyBatch) -> Any:
    """Shapes, dtypes and shardings of what `PlacedTeacher.attach` adds to a batch like `batch`."""
    ...

  def place(self) -> PlacedTeacher:
    """Puts the parameters on the devices."""
    ...

  def outputs(self, params: Params, batch: AnyBatch, *, with_taps: bool = False) -> Outputs:
    """Returns the teacher's outputs for a batch, detached; traced inside the student's programs.

    Args:
      params: parameters as described by `abstract_params`.
      batch: a batch from `PlacedTeacher.attach`, or a micro-batch of one.
      with_taps: whether the taps are needed; if false, `Hidden.taps` may hold none. A `TopK` never
        has taps, so such a teacher serves no method with a feature loss.

    Returns:
      `Hidden` or `TopK`; always the same kind.
    """
    ...
