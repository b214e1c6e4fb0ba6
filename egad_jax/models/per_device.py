"""Runs attention kernels on a device mesh, each device for its own rows and attention heads."""

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
  """Wraps `kernel` to run on each device's rows and attention heads, without communication.

  If the number of devices along the axis of the heads divides the query heads but not the key
  heads, each key head is repeated, as few times as give every device whole groups. If it does not
  divide the query heads either, these devices repeat each other's work.

  Args:
    mesh: the mesh over which the caller's arrays are sharded; None for one device.
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
