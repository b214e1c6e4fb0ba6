"""Reads safetensors in an object store by ranges of bytes: the header, then slices of tensors.

The safetensors package reads files on a disk only. The format:
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from egad_jax.errors import InputError
from egad_jax.files.json_file import parse_json
from egad_jax.files.regular_file import open_regular, require_regular
from egad_jax.lazy_arrays import Slices

# The limit of the safetensors package, in bytes.
_LARGEST_HEADER = 100_000_000
_DTYPES = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Place(NamedTuple):
  """Where a tensor is in a file.

  Attributes:
    shape: its shape.
    dtype: the format's name of its dtype.
    start: its first byte in the file.
  """

  shape: tuple[int, ...]
  dtype: str
  start: int


def read_header(path: os.PathLike[str]) -> dict[str, Place]:
  """The tensors of a file by name, sorted.

  Raises:
    InputError: the file is missing, truncated or malformed.
  """
  size = require_regular(path)
  try:
    with open_regular(path) as file:
      length = int.from_bytes(file.read(8), "little")
      if size < 8 or length > min(_LARGEST_HEADER, size - 8):
        raise ValueError(f"its header is to have {length} bytes")
      content = file.read(length)
    return _places(parse_json(path, content), 8 + length, size)
  except (ValueError, OSError) as error:
    raise InputError(
      f"{path} ({size} bytes) is not a whole safetensors file: {error}. It may be truncated; fetch "
      "it again."
    ) from error


def _places(header: dict[str, Any], first: int, size: int) -> dict[str, Place]:
  found, ends = {}, []
  for name, entry in sorted(header.items()):
    if name == "__metadata__":
      continue
    match entry:
      case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
        whole = all(type(n) is int and n >= 0 for n in shape)
      case _:
        whole = False
    if not whole:
      raise ValueError(f"the entry of {name!r} is malformed")
    known = _DTYPES.get(dtype)
    if known is not None and end - start != math.prod(shape) * known.itemsize:
      raise ValueError(f"{name!r} has {end - start} bytes, not those of its shape")
    ends.append((start, end))
    found[name] = Place(tuple(shape), dtype, first + start)
  # The tensors fill the file without gaps.
  reached = 0
  for start, end in sorted(ends):
    if start != reached or end < start:
      raise ValueError(f"a tensor is at bytes {start} to {end}, after {reached}")
    reached = end
  if first + reached != size:
    raise ValueError(f"its tensors end at byte {first + reached}")
  return found


def read(path: os.PathLike[str], place: Place, slices: Slices) -> np.ndarray:
  """Values of a tensor of at least one axis, in one request for the rows that hold them.

  Args:
    path: the file.
    place: where the tensor is, with one of the dtypes that models have.
    slices: a slice for each axis, with a start and a stop.

  Raises:
    InputError: the file has become shorter, or cannot be read.
  """
  dtype, (rows, *rest) = _DTYPES[place.dtype], slices
  row = math.prod(place.shape[1:]) * dtype.itemsize
  wanted = (rows.stop - rows.start) * row
  with open_regular(path) as file:
    file.seek(place.start + rows.start * row)
    data = file.read(wanted)
  if len(data) != wanted:
    raise InputError(f"{path} has become shorter while it was read; fetch it again.")
  array = np.frombuffer(data, dtype).reshape(-1, *place.shape[1:])
  return array[(slice(None), *rest)]
