"""Products of hidden states with weights."""

from __future__ import annotations

import math

import jax


def project(x: jax.Array, kernel: jax.Array, *, inputs: int = 1) -> jax.Array:
  """Contracts the last axes of `x` with the first axes of `kernel`.

  Args:
    x: `[batch, seq, *inputs]`, in the compute dtype.
    kernel: `[*inputs, *outputs]`, of the same dtype.
    inputs: number of axes that are contracted.

  Returns:
    `[batch, seq, *outputs]`.
  """
  # Batch and sequence become one axis. Otherwise the weight's gradient contracts two axes, for
  # which XLA on CPU transposes the operands, and the MLP's backward pass takes 1.4 times as long.
  width = math.prod(kernel.shape[:inputs])
  flat = x.reshape(-1, width) @ kernel.reshape(width, -1)
  return flat.reshape(*x.shape[:2], *kernel.shape[inputs:])
