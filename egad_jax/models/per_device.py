"""Attention kernels on a device mesh: each device attends for its own rows and heads."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from egad_jax import sharding

Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def per_device(
  mesh: jax.sharding.Mesh | None, kernel: Kernel, seen_axes: sharding.LogicalAxes
) -> Kernel:
  """Runs `kernel` on each device's rows and heads; no communication inside.

  Where the devices divide the query heads but not the key heads, each key head is repeated as
  often as needed, the least that gives every device whole groups. Where they do not divide the
  query heads either, those along the axis of the heads repeat each other's work.

  Args:
    mesh: the mesh that the caller's arrays live on; None: one device.
    kernel: `(query, key, value, seen) -> out` of `[batch, seq, heads, head_dim]` arrays.
    seen_axes: logical axes of `seen`.
  """
  if mesh is None:
    return kernel
  devices = sharding.head_devices(mesh)
  keys = ("batch", "seq", "kv_heads", None)
  axes = (("batch", "seq", "heads", None), keys, keys, seen_axes)

  def attend(query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array) -> jax.Array:
    shared = key.shape[2]
    copies = math.lcm(shared, devices) // shared
    if copies > 1 and query.shape[2] % devices == 0:
      key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
    return sharding.split(mesh, kernel, axes)(query, key, value, seen)

  return attend
