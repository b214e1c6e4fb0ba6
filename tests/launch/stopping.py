"""A request to end, as a signal would make it, after a number of steps."""

from __future__ import annotations

from egad_jax.durability.preemption import Preemption


class EndAfter(Preemption):
  """Asks a run or a sweep to end after so many steps."""

  def __init__(self, steps: int):
    super().__init__()
    self._steps = steps

  def requested(self) -> bool:
    self._asked += 1
    return self._asked > self._steps
