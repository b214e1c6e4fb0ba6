"""Reads the header of a GGUF file and checks every length in it against the file's size.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import array
import math
import os
import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import gguf
import numpy as np

from egad_jax.errors import InputError
from egad_jax.files.regular_file import require_regular

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
# Far above any model's number of tensors or keys; each takes up to a kilobyte of memory.
_MAX_ENTRIES = 2**14
# `struct` formats of GGUF's scalar types by their numbers; 8 is a string, 9 an array.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class StoredTensor(NamedTuple):
  """One tensor of a GGUF file.

  Attributes:
    name: the tensor's name in the file.
    kind: the GGML type in which its values are stored, such as Q4_K.
    shape: the logical shape, slowest axis first.
    data: the stored bytes, uint8 `[*shape[:-1], bytes of a row]`, mapped from the file.
  """

  name: str
  kind: gguf.GGMLQuantizationType
  shape: tuple[int, ...]
  data: np.ndarray

  def rows(self, start: int, stop: int) -> StoredTensor:
    """The entries from `start` to `stop` along the slowest axis of a tensor of several axes."""
    return self._replace(shape=(stop - start, *self.shape[1:]), data=self.data[start:stop])


class Array(Sequence[Any]):
  """An array of the metadata, mapped from the file; it equals a list of the same entries."""

  def __eq__(self, other: object) -> bool:
    same_length = isinstance(other, (list, Array)) and len(self) == len(other)
    return same_length and all(a == b for a, b in zip(self, cast(Any, other), strict=True))

  __hash__ = None  # type: ignore[assignment]

  def __repr__(self) -> str:
    more = f", and {len(self) - 5} more" if len(self) > 5 else ""
    return f"[{', '.join(map(repr, self[:5]))}{more}]"


class Numbers(Array):
  """An array of numbers of one GGUF scalar type; access returns Python numbers."""

  def __init__(self, values: np.ndarray) -> None:
    """Wraps `values`, a one-dimensional view of the file."""
    self._values = values

  def __len__(self) -> int:
    return len(self._values)

  def __getitem__(self, index: Any) -> Any:
    return self._values[index].tolist()


class Texts(Array):
  """An array of strings; each access decodes one."""

  def __init__(self, data: memoryview, offsets: array.array[int]) -> None:
    """Takes the bytes of the file, and the offset in them of each string's length prefix."""
    self._data, self._offsets = data, offsets

  def __len__(self) -> int:
    return len(self._offsets)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self._at(offset) for offset in self._offsets[index]]
    return self._at(self._offsets[index])

  def __iter__(self) -> Iterator[str]:
    return map(self._at, self._offsets)

  def _at(self, offset: int) -> str:
    start = offset + 8
    (length,) = struct.unpack("<Q", self._data[offset:start])
    return str(self._data[start : start + length], "utf-8")


class GGUFFile(NamedTuple):
  """The header of a GGUF file.

  Attributes:
    metadata: key -> Python number, bool or string, or an array as `Numbers` or `Texts`.
    tensors: name -> tensor, whose data is mapped from the file.
  """

  metadata: dict[str, Any]
  tensors: dict[str, StoredTensor]


def as_list(value: Any) -> list[Any] | None:
  """The entries of an array of the metadata as a list; None if `value` is not an array."""
  return list(value[:]) if isinstance(value, Array) else None


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
  """Reads the header of a GGUF file and maps its tensors.

  Memory stays below twice the size of the file plus 16 MiB for names, whatever the header claims.

  Raises:
    InputError: the file is missing, truncated, damaged or not GGUF.
  """
  path = pathlib.Path(path)
  size = require_regular(path)
  try:
    if not size:
      raise ValueError("it is empty")
    return _read(np.memmap(path, np.uint8, "r"))
  except ValueError as error:
    raise InputError(
      f"{path} ({size} bytes) is not a whole GGUF file: {error}. It may be truncated; fetch it "
      "again."
    ) from error


class _Cursor:
  """Reads forward through bytes; raises ValueError before it would read beyond their end."""

  def __init__(self, data: np.ndarray) -> None:
    self._data = data.data
    self.offset = 0

  def take(self, size: int) -> memoryview:
    if size > len(self._data) - self.offset:
      raise ValueError(f"{size} bytes are due at byte {self.offset} of {len(self._data)}")
    self.offset += size
    return self._data[self.offset - size : self.offset]

  def scalars(self, layout: str, count: int) -> list[Any]:
    size = struct.calcsize(f"<{layout}")
    return list(struct.unpack(f"<{count}{layout}", self.take(size * count)))

  def scalar(self, layout: str) -> Any:
    return self.scalars(layout, 1)[0]

  def string(self) -> str:
    return str(self.take(self.scalar("Q")), "utf-8")

  def value(self) -> Any:
    kind = self.scalar("I")
    if kind == _ARRAY:
      kind, count = self.scalar("I"), self.scalar("Q")
      return self._texts(count) if kind == _STRING else Numbers(self._numbers(kind, count))
    if kind == _STRING:
      return self.string()
    return self._numbers(kind, 1).item()

  def _numbers(self, kind: int, count: int) -> np.ndarray:
    if kind not in _SCALARS:
      raise ValueError(f"a value of unknown type {kind} ends before byte {self.offset}")
    dtype = np.dtype(f"<{_SCALARS[kind]}")
    values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
    return values.view(np.uint8) != 0 if dtype.kind == "b" else values

  def _texts(self, count: int) -> Texts:
    offsets = array.array("Q")
    # Each string takes at least 8 bytes, so a false count ends at the end of the file.
    for _ in range(count):
      offsets.append(self.offset)
      self.string()
    return Texts(self._data, offsets)


def _read(data: np.ndarray) -> GGUFFile:
  cursor = _Cursor(data)
  if bytes(cursor.take(4)) != b"GGUF":
    raise ValueError("it does not start with GGUF")
  version = cursor.scalar("I")
  if version not in _VERSIONS:
    raise ValueError(f"its version is {version}, not 2 or 3 of little-endian GGUF")
  num_tensors, num_keys = cursor.scalars("Q", 2)
  if max(num_tensors, num_keys) > _MAX_ENTRIES:
    raise ValueError(f"it has {num_tensors} tensors and {num_keys} keys, more than any model")
  metadata: dict[str, Any] = {}
  for _ in range(num_keys):
    key = cursor.string()
    if key in metadata:
      raise ValueError(f"the key {key!r} is there twice")
    metadata[key] = cursor.value()
  infos: dict[str, tuple[list[int], int, int]] = {}
  for _ in range(num_tensors):
    name = cursor.string()
    if name in infos:
      raise ValueError(f"the tensor {name!r} is there twice")
    dimensions = cursor.scalar("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
      raise ValueError(f"the tensor {name!r} has {dimensions} axes")
    infos[name] = cursor.scalars("Q", dimensions), cursor.scalar("I"), cursor.scalar("Q")
  alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
  if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
    raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
  start = -(-cursor.offset // alignment) * alignment
  tensors = {name: _tensor(data, name, *info, start) for name, info in infos.items()}
  # Tensors that share bytes would be larger in memory than any file that holds them.
  if sum(tensor.data.size for tensor in tensors.values()) > len(data):
    raise ValueError("its tensors overlap")
  return GGUFFile(metadata, tensors)


def _tensor(
  data: np.ndarray, name: str, dims: list[int], number: int, offset: int, start: int
) -> StoredTensor:
  try:
    kind = gguf.GGMLQuantizationType(number)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
  except (ValueError, KeyError):
    raise ValueError(f"the tensor {name!r} is of unknown type {number}") from None
  # The file lists the fastest axis first.
  shape = tuple(reversed(dims))
  if shape[-1] % block:
    raise ValueError(f"rows of {shape[-1]} values of the tensor {name!r} are no whole blocks")
  row_bytes = shape[-1] // block * block_bytes
  size = math.prod(shape[:-1]) * row_bytes
  first = start + offset
  if not size or first + size > len(data):
    raise ValueError(
      f"the tensor {name!r} of shape {list(shape)} is due at bytes {first} to {first + size} of "
      f"{len(data)}"
    )
  return StoredTensor(name, kind, shape, data[first : first + size].reshape(*shape[:-1], row_bytes))
