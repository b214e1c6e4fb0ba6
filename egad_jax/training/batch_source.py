"""Where the batches of a run come from: rows packed before the training, or made from the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from egad_jax.data import pipeline
from egad_jax.data.batches import AnyBatch
from egad_jax.data.packing import Rows
from egad_jax.training.state import TrainState

StateOf = Callable[[], TrainState]
"""Returns the state after all steps made so far; called between two steps."""


class BatchSource(Protocol):
  """Batches by the number of their step, deterministic in (config, seed, step, state)."""

  @property
  def reads_state(self) -> bool:
    """Whether a batch depends on the state, so that it cannot be made before its step is due."""
    ...

  def batch(
    self, step: int, state: TrainState | None, part: Sequence[int] | None = None
  ) -> AnyBatch:
    """The batch of one step, on the host; the same whenever it is asked for.

    Args:
      step: steps made before.
      state: after those; None from callers that have none, to sources that read none.
      part: which rows of the batch; None for all.

    Returns:
      Fields of [rows of the part, seq], int32 and bool.
    """
    ...

  def stream(self, start_step: int, state_of: StateOf, part: Sequence[int]) -> Iterator[AnyBatch]:
    """The batches of `start_step`, `start_step + 1`, ... without end."""
    ...


@dataclasses.dataclass(frozen=True)
class PackedRows:
  """Rows packed once, in an order of their own for every epoch, read ahead; a `BatchSource`.

  Attributes:
    rows: the packed rows.
    batch_size: rows of a batch, over all processes.
    seed: of the orders.
  """

  rows: Rows
  batch_size: int
  seed: int

  @property
  def reads_state(self) -> bool:
    """Never."""
    return False

  def batch(
    self, step: int, state: TrainState | None, part: Sequence[int] | None = None
  ) -> AnyBatch:
    """See `BatchSource`; the state is not read."""
    del state
    return pipeline.train_batch(self.rows, step, **self._order(), part=part)

  def stream(self, start_step: int, state_of: StateOf, part: Sequence[int]) -> Iterator[AnyBatch]:
    """See `BatchSource`; threads read ahead."""
    del state_of
    return pipeline.train_batches(self.rows, **self._order(), start_step=start_step, part=part)

  def _order(self) -> dict[str, int]:
    return {"batch_size": self.batch_size, "seed": self.seed}


class StateReader:
  """Base of a source that makes each batch from the state, when its step is due."""

  reads_state = True

  def batch(
    self, step: int, state: TrainState | None, part: Sequence[int] | None = None
  ) -> AnyBatch:
    """See `BatchSource`."""
    raise NotImplementedError

  def stream(self, start_step: int, state_of: StateOf, part: Sequence[int]) -> Iterator[AnyBatch]:
    """See `BatchSource`."""
    step = start_step
    while True:
      yield self.batch(step, state_of(), part)
      step += 1
