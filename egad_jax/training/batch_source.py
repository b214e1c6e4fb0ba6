"""Sources of train batches: rows packed before training, or batches made from the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from egad_jax.data import pipeline
from egad_jax.data.batches import AnyBatch
from egad_jax.data.packed_rows import Rows
from egad_jax.training.state import TrainState

StateOf = Callable[[], TrainState]
"""A function that returns the state after all steps made so far; called between two steps."""


class BatchSource(Protocol):
  """Train batches by step number; a batch is a function of (config, seed, step, state) alone."""

  @property
  def reads_state(self) -> bool:
    """Whether a batch depends on the state, so that it cannot be made before its step is due."""
    ...

  def batch(
    self, step: int, state: TrainState | None, part: Sequence[int] | None = None
  ) -> AnyBatch:
    """The batch of one step, on the host; the same whenever it is asked for.

    Args:
      step: number of steps made before this one, so 0 for the first.
      state: the state after those steps; may be None if the source does not read the state.
      part: indices of the batch's rows to return; None for all rows.

    Returns:
      A batch whose fields are NumPy arrays [rows of the part, seq], int32 and bool.
    """
    ...

  def stream(self, start_step: int, state_of: StateOf, part: Sequence[int]) -> Iterator[AnyBatch]:
    """The batches of `start_step`, `start_step + 1`, ... without end; arguments as for `batch`."""
    ...


@dataclasses.dataclass(frozen=True)
class PackedRows:
  """A `BatchSource` of rows that were packed before training, shuffled anew in every epoch.

  Attributes:
    rows: the packed rows.
    batch_size: rows per batch, over all processes.
    seed: seed of the epochs' row orders.
  """

  rows: Rows
  batch_size: int
  seed: int

  @property
  def reads_state(self) -> bool:
    """False: the rows are fixed before training."""
    return False

  def batch(
    self, step: int, state: TrainState | None, part: Sequence[int] | None = None
  ) -> AnyBatch:
    """See `BatchSource`; the state is not read."""
    del state
    return pipeline.train_batch(self.rows, step, **self._order(), part=part)

  def stream(self, start_step: int, state_of: StateOf, part: Sequence[int]) -> Iterator[AnyBatch]:
    """See `BatchSource`; threads read rows ahead."""
    del state_of
    return pipeline.train_batches(self.rows, **self._order(), start_step=start_step, part=part)

  def _order(self) -> dict[str, int]:
    return {"batch_size": self.batch_size, "seed": self.seed}


class StateReader:
  """Base class of a source that makes each batch from the state, once its step is due."""

  reads_state = True

  def batch(
    self, step: int, state: TrainState | None, part: Sequence[int] | None = None
  ) -> AnyBatch:
    """See `BatchSource`; a subclass must implement this."""
    raise NotImplementedError

  def stream(self, start_step: int, state_of: StateOf, part: Sequence[int]) -> Iterator[AnyBatch]:
    """See `BatchSource`."""
    step = start_step
    while True:
      yield self.batch(step, state_of(), part)
      step += 1
