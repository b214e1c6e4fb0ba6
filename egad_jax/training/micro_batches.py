"""Batches in parts that are worked on one after the other."""

from __future__ import annotations

from typing import Any

import jax


def micro_batches(batch: Any, accumulation: int) -> Any:
  """Splits the rows of a batch: [batch, …] -> [accumulation, batch / accumulation, …].

  Micro-batch m takes rows m, m + accumulation, …: rows then stay on the device that holds them.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1),
    batch,
  )


def joined(parts: Any) -> Any:
  """The inverse of `micro_batches`."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)
