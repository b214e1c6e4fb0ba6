"""A batch source of one's own: the packed rows in order, and those of a skipped step once more.

It reads the guard's count of skipped steps in the state; a curriculum of rows or a source of
rollouts would read more of it. A batch that is bad by itself would come again for ever, which
`guard.max_skipped` ends.

  python -m examples.extending.batch_source
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from egad_jax.data import batches
from egad_jax.data.batches import AnyBatch
from egad_jax.data.corpus import TRAIN
from egad_jax.data.packed_rows import Rows
from egad_jax.data.pipeline import RowSource
from egad_jax.from_config import Extensions
from egad_jax.training.batch_source import StateReader
from egad_jax.training.state import TrainState
from examples.extending.short_run import short_run, show


class InOrder(StateReader):
  """The packed rows in the order of their numbers; a `BatchSource`."""

  def __init__(self, config: Any, rows: Rows):
    self._rows, self._batch_size = RowSource(rows, TRAIN), config.batch_size

  def batch(
    self, step: int, state: TrainState | None, part: Sequence[int] | None = None
  ) -> AnyBatch:
    """The batch of a step; see `BatchSource`."""
    assert state is not None
    start = (step - int(state.guard.skipped)) * self._batch_size
    part = range(self._batch_size) if part is None else part
    return batches.stack([self._rows[(start + i) % len(self._rows)] for i in part])


EXTENSIONS = Extensions(batch_source=InOrder)

if __name__ == "__main__":
  show(short_run(EXTENSIONS))
