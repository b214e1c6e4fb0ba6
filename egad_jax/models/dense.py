"""Products of token vectors with weights."""

from __future__ import annotations

import math

import jax


def project(x: jax.Array, kernel: jax.Array, *, inputs: int = 1) -> jax.Array:
  """Contracts the last axes of `x` with the first axes of `kernel`.

  Args:
    x: `[batch, seq, *inputs]`.
    kernel: `[*inputs, *outputs]`, of the same dtype.
    inputs: how many axes are contracted.

  Returns:
    `[batch, seq, *outputs]`.
  """
  # Batch and sequence become one axis. The same product over [batch, seq, dim] has a weight
  # gradient that contracts two axes, for which XLA on CPU transposes its operands: the MLP's
  # backward pass takes 1.4 times as long.
  width = math.prod(kernel.shape[:inputs])
  flat = x.reshape(-1, width) @ kernel.reshape(width, -1)
  return flat.reshape(*x.shape[:2], *kernel.shape[inputs:])
