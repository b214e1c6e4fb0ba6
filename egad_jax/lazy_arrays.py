"""Arrays whose values are read from files when they are needed, slice by slice.

A model's parameters are a tree of them until they are on the devices, so that host memory never
holds more than the part that is being copied.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

# Bytes that one copy from files to a device, or one digest, takes of an array at a time.
BLOCK_BYTES = 2**26

Slices = tuple[slice, ...]
# `(out, slices) -> None` writes the values at `slices`, cast to the dtype of `out`, into `out`.
# There is a slice for each axis, with a start and a stop inside the axis and no step.
Fill = Callable[[np.ndarray, Slices], None]


class LazyArray:
  """A float32 array that is read when it is indexed.

  Attributes:
    shape: the array's shape.
    dtype: float32, whatever the dtype in the files.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, shape: Sequence[int], fill: Fill) -> None:
    """Takes the shape and the function that reads slices; see `Fill`."""
    self.shape = tuple(shape)
    self._fill = fill

  @property
  def ndim(self) -> int:
    """The number of axes."""
    return len(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes of all values in float32."""
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

  def __len__(self) -> int:
    return self.shape[0]

  def __repr__(self) -> str:
    return f"LazyArray(shape={self.shape})"

  def read_into(self, out: np.ndarray, slices: Slices) -> None:
    """Writes the values at `slices`, one for each axis, into an array of their shape."""
    self._fill(out, slices)

  def read(self, index: Any = (), dtype: Any = np.float32) -> np.ndarray:
    """A new array of the values at an index, rounded once from float32 to `dtype`.

    Args:
      index: integers and slices without steps, as of a NumPy array.
      dtype: dtype of the result.
    """
    slices, dropped = self._slices(index)
    out = np.empty([s.stop - s.start for s in slices], dtype)
    if out.size:
      self._fill(out, slices)
    return out[tuple(0 if axis in dropped else slice(None) for axis in range(self.ndim))]

  def item(self, position: int) -> LazyArray:
    """The array at a position of the first axis, not read."""
    first = slice(position, position + 1)
    return LazyArray(self.shape[1:], lambda out, slices: self._fill(out[None], (first, *slices)))

  def __getitem__(self, index: Any) -> np.ndarray:
    return self.read(index)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if copy is False:
      raise ValueError("a LazyArray cannot be an array without being read.")
    return self.read(dtype=np.float32 if dtype is None else dtype)

  def _slices(self, index: Any) -> tuple[Slices, set[int]]:
    """A slice for each axis, and the axes that an integer index removes."""
    entries = index if isinstance(index, tuple) else (index,)
    if len(entries) > self.ndim:
      raise IndexError(f"{len(entries)} indices for an array of {self.ndim} axes.")
    found, dropped = [], set()
    for axis, size in enumerate(self.shape):
      entry = entries[axis] if axis < len(entries) else slice(None)
      if isinstance(entry, slice):
        start, stop, step = entry.indices(size)
        if step != 1:
          raise IndexError(f"a LazyArray has no steps; got {entry}.")
        found.append(slice(start, max(start, stop)))
        continue
      position = operator.index(entry)
      position += size if position < 0 else 0
      if not 0 <= position < size:
        raise IndexError(f"index {entry} is out of range for axis {axis} of {size}.")
      found.append(slice(position, position + 1))
      dropped.add(axis)
    return tuple(found), dropped


def assign(out: np.ndarray, values: np.ndarray) -> None:
  """Writes values into `out` with the rounding of a cast to float32 and then to its dtype."""
  if values.dtype not in (out.dtype, np.float32):
    values = values.astype(np.float32)
  out[...] = values


def from_numpy(array: np.ndarray) -> LazyArray:
  """An array that is in memory already, as one that is read slice by slice."""
  return LazyArray(array.shape, lambda out, slices: assign(out, array[slices]))


def stack(arrays: Sequence[LazyArray]) -> LazyArray:
  """Arrays of one shape as one along a new first axis, not read."""

  def fill(out: np.ndarray, slices: Slices) -> None:
    first, *rest = slices
    for i, array in enumerate(arrays[first]):
      array.read_into(out[i, ...], tuple(rest))

  return LazyArray((len(arrays), *arrays[0].shape), fill)


def with_rows(array: LazyArray, kept: int, total: int, row: np.ndarray | float) -> LazyArray:
  """The first `kept` rows of an array, and then copies of `row` up to `total` rows; not read."""

  def fill(out: np.ndarray, slices: Slices) -> None:
    first, *rest = slices
    held = max(0, min(first.stop, kept) - first.start)
    if held:
      array.read_into(out[:held], (slice(first.start, first.start + held), *rest))
    assign(out[held:], np.asarray(row)[tuple(rest) if np.ndim(row) else ()])

  return LazyArray((total, *array.shape[1:]), fill)


def blocks(shape: Sequence[int], itemsize: int, most: int) -> Iterator[tuple[int | slice, ...]]:
  """Indices that cut an array along its first axes into parts of about `most` bytes, in order.

  The cuts depend on the arguments alone.
  """
  size = int(np.prod(shape, dtype=np.int64)) * itemsize
  if size <= most or not shape:
    yield ()
    return
  at_once = most // (size // shape[0])
  for start in range(0, shape[0], max(1, at_once)):
    if at_once:
      yield (slice(start, min(start + at_once, shape[0])),)
    else:
      yield from ((start, *inner) for inner in blocks(shape[1:], itemsize, most))


def slices_of(index: Sequence[int | slice], shape: Sequence[int]) -> Slices:
  """An index as a slice for each axis, with a start and a stop inside the axis."""
  entries = [slice(i, i + 1) if isinstance(i, int) else i for i in index]
  entries += [slice(None)] * (len(shape) - len(entries))
  return tuple(slice(*s.indices(size)[:2]) for s, size in zip(entries, shape, strict=True))


def read_all(tree: Any) -> Any:
  """The tree with every `LazyArray` read whole, as float32; other leaves stay as they are."""
  return jax.tree.map(lambda x: x.read() if isinstance(x, LazyArray) else x, tree)
