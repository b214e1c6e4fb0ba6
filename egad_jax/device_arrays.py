"""Copies arrays from the host, or from files, to the devices of a mesh, and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from egad_jax.lazy_arrays import BLOCK_BYTES, LazyArray, Slices, blocks, slices_of

# A program that cuts an array is compiled for each shape, which costs more than to copy so little.
_SMALL_BYTES = 2**20


def put(tree: Any, shardings: Any, dtypes: Any = None) -> Any:
  """Puts arrays, which must be equal on every process, on the devices.

  A `LazyArray` is read once by each process, and only the part that its devices hold. Host memory
  has a block of `BLOCK_BYTES` of it at a time, and for larger arrays each device has a further one.

  Args:
    tree: a tree of `LazyArray`s or NumPy arrays.
    shardings: the tree of their shardings.
    dtypes: the tree of the dtypes on the devices; None keeps each array's own.
  """
  if dtypes is None:
    dtypes = jax.tree.map(lambda x: x.dtype, tree)
  return jax.tree.map(_put, tree, shardings, dtypes)


def get(array: Any, at: tuple[int, ...], fetch: Callable[[jax.Array], np.ndarray]) -> np.ndarray:
  """An array, or its entry at indices of the first axes, as a NumPy array on every process.

  An array on devices comes in blocks of about `BLOCK_BYTES`: JAX keeps a copy on the host of what
  is converted whole, and across processes each device holds a copy of what is gathered.

  Args:
    array: an array on devices, with more axes than `at`, or one on the host.
    at: the indices; () for the whole array.
    fetch: copies a small array of several processes to the host of each.
  """
  if not isinstance(array, jax.Array):
    return np.asarray(array[at] if at else array)
  out = np.empty(array.shape[len(at) :], array.dtype)
  if not array.is_fully_addressable:
    # The entry first: blocks of it are then cut from little.
    for axis, index in enumerate(at):
      array = _cut(array, axis, index, 1)
    _copy(array, (0,) * len(at), out, fetch)
    return out
  for shard in array.addressable_shards:
    held = slices_of(shard.index, array.shape)
    first = held[: len(at)]
    if shard.replica_id == 0 and all(s.start <= i < s.stop for s, i in zip(first, at, strict=True)):
      inside = tuple(i - s.start for s, i in zip(first, at, strict=True))
      target = out[held[len(at) :]]
      if shard.data.nbytes <= min(_SMALL_BYTES, BLOCK_BYTES):
        target[...] = np.asarray(shard.data)[inside]
      else:
        _copy(shard.data, inside, target, np.asarray)
  return out


def _copy(
  array: jax.Array,
  at: tuple[int, ...],
  out: np.ndarray,
  fetch: Callable[[jax.Array], np.ndarray],
) -> None:
  """Copies an entry of an array into `out` in blocks along an axis that is not split, if any."""
  for axis, index in enumerate(at):
    array = _cut(array, axis, index, 1)
  n = len(at)
  whole = array.sharding.shard_shape(array.shape)[n:]
  axes = sorted(range(out.ndim), key=lambda i: (whole[i] != out.shape[i], -out.shape[i]))
  axis = axes[0]
  length = out.shape[axis]
  at_once = max(1, BLOCK_BYTES // max(1, out.nbytes // max(1, length)))
  for start in range(0, length, at_once):
    size = min(at_once, length - start)
    block = fetch(_cut(array, n + axis, start, size))
    out[(*(slice(None),) * axis, slice(start, start + size))] = block.reshape(
      *out.shape[:axis], size, *out.shape[axis + 1 :]
    )


def _cut(array: jax.Array, axis: int, start: int, size: int) -> jax.Array:
  """A range of an axis; the other axes stay split, or every device might get all of it."""
  sharding = array.sharding
  if isinstance(sharding, NamedSharding):
    spec = [*sharding.spec, *(None,) * (array.ndim - len(sharding.spec))]
    spec[axis] = None
    sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
  return _cut_jitted(array, np.int32(start), axis, size, sharding)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _cut_jitted(
  array: jax.Array, start: jax.Array, axis: int, size: int, sharding: Sharding
) -> jax.Array:
  part = jax.lax.dynamic_slice_in_dim(array, start, size, axis)
  if not isinstance(sharding, NamedSharding):
    return part
  return jax.lax.with_sharding_constraint(part, sharding)


def _put(array: Any, sharding: Sharding, dtype: Any) -> jax.Array:
  if isinstance(array, LazyArray):
    return _put_lazy(array, sharding, np.dtype(dtype))
  array = np.asarray(array).astype(dtype, copy=False)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _put_lazy(array: LazyArray, sharding: Sharding, dtype: np.dtype[Any]) -> jax.Array:
  held = {
    device: slices_of(index, array.shape)
    for device, index in sharding.addressable_devices_indices_map(array.shape).items()
    if index is not None
  }
  box = tuple(
    slice(min(s.start for s in axis), max(s.stop for s in axis))
    for axis in zip(*held.values(), strict=True)
  )
  shape = [s.stop - s.start for s in box]
  if math.prod(shape) * dtype.itemsize <= BLOCK_BYTES:
    values = array.read(box, dtype)
    parts = {
      device: jax.device_put(
        np.ascontiguousarray(values[_inside(part, box)]), SingleDeviceSharding(device)
      )
      for device, part in held.items()
    }
  else:
    parts = _in_blocks(array, box, held, dtype)
  # Programs cannot put an array together in the memory of a host, so it moves there when it is
  # whole.
  kind = sharding.memory_kind
  placed = [
    jax.device_put(parts.pop(device), SingleDeviceSharding(device, memory_kind=kind))
    for device in list(parts)
  ]
  jax.block_until_ready(placed)
  return jax.make_array_from_single_device_arrays(array.shape, sharding, placed)


def _in_blocks(
  array: LazyArray, box: Slices, held: Mapping[Any, Slices], dtype: np.dtype[Any]
) -> dict[Any, jax.Array]:
  """The part of each device, put together on the device from blocks."""
  parts = {
    device: jnp.zeros([s.stop - s.start for s in part], dtype, device=device)
    for device, part in held.items()
  }
  for index in blocks([s.stop - s.start for s in box], dtype.itemsize, BLOCK_BYTES):
    inner = slices_of(index, [s.stop - s.start for s in box])
    block = tuple(
      slice(b.start + i.start, b.start + i.stop) for b, i in zip(box, inner, strict=True)
    )
    values = array.read(block, dtype)
    for device, part in held.items():
      common = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(part, block, strict=True)
      )
      if any(s.start >= s.stop for s in common):
        continue
      update = jax.device_put(
        np.ascontiguousarray(values[_inside(common, block)]), SingleDeviceSharding(device)
      )
      starts = [c.start - p.start for c, p in zip(common, part, strict=True)]
      parts[device] = _update(parts[device], update, np.asarray(starts, np.int32))
    # The host's copy can go once the devices have it.
    jax.block_until_ready(list(parts.values()))
  return parts


@jax.jit(donate_argnums=0)
def _update(whole: jax.Array, part: jax.Array, starts: jax.Array) -> jax.Array:
  return jax.lax.dynamic_update_slice(whole, part, tuple(starts))


def _inside(part: Slices, box: Slices) -> Slices:
  """The slices of `part`, counted from the start of `box`."""
  return tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
