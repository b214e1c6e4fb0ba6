"""Digests of arrays, taken on the devices that hold them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# Odd numbers, so that multiplication by them is a bijection modulo 2**32.
_FIRST, _SECOND = 0x9E3779B1, 0x85EBCA77


def leaves_by_path(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their paths, such as "params/student/embedding"."""
  name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def digests(tree: Any) -> dict[str, str]:
  """A digest of every leaf, which covers its values and their order.

  One changed bit always changes its leaf's digest; any other change (values swapped, a block moved)
  goes unseen with a probability of about 2**-64. A digest depends on the values alone, not on the
  mesh or the number of processes, and all processes get the same.

  Args:
    tree: arrays of any shape and dtype, on the devices of one mesh.

  Returns:
    Path of each leaf -> 16 hexadecimal digits.
  """
  leaves = leaves_by_path(tree)
  if not leaves:
    return {}
  shardings = [getattr(leaf, "sharding", None) for leaf in leaves.values()]
  mesh = next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)
  sums = np.asarray(_program(mesh)(list(leaves.values())))
  return {path: f"{a:08x}{b:08x}" for path, (a, b) in zip(leaves, sums.tolist(), strict=True)}


@functools.cache
def _program(mesh: jax.sharding.Mesh | None) -> Any:
  """The jitted program: list of N leaves -> uint32 [N, 2], the same on all devices."""
  whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  return jax.jit(lambda leaves: jnp.stack([_sums(x) for x in leaves]), out_shardings=whole)


def _sums(x: jax.Array) -> jax.Array:
  """uint32 [2]: two sums over the mixed values of one leaf."""
  bits = _bits(x)
  # A flat index by a reshape would gather a sharded array; one iota per dimension does not.
  first = second = jnp.uint32(0)
  stride = 1
  for axis in reversed(range(bits.ndim)):
    index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    first += index * jnp.uint32(stride * _FIRST % 2**32)
    # Values 2**32 apart have the same `first`, but another `second`.
    second += index * jnp.uint32(pow(_SECOND, 2 * axis + 1, 2**32))
    stride *= bits.shape[axis]
  mixed = _mix(bits ^ first), _mix((bits ^ jnp.uint32(_SECOND)) + second)
  # XLA compiles one reduction of two operands to one loop without temporaries.
  add = lambda a, b: (a[0] + b[0], a[1] + b[1])
  zero = jnp.uint32(0)
  return jnp.stack(jax.lax.reduce(mixed, (zero, zero), add, tuple(range(bits.ndim))))


def _bits(x: jax.Array) -> jax.Array:
  """The bits of each value as uint32; a 64-bit value becomes two, in a new last dimension."""
  x = jnp.asarray(x)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    x = jnp.stack([x.real, x.imag], axis=-1)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  width = jax.dtypes.itemsize_bits(x.dtype)
  unsigned = jnp.dtype(f"uint{min(width, 32)}")
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  """A bijection of uint32 in which every input bit affects every output bit."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
