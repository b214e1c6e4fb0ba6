"""Writes safetensors, one file or several with their index, a tensor at a time.

The safetensors package writes a file from all of its tensors at once; a student of 70 billion
parameters would need a shard twice in memory. The format is a length, a JSON header and the bytes:
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from egad_jax.errors import InputError
from egad_jax.lazy_arrays import blocks
from egad_jax.models.directory_layout import INDEX, SINGLE

# Bytes of tensors in a file, as in transformers; a larger tensor has a file to itself.
MOST_BYTES = 5 * 10**9
_CODES = {
  "float32": (np.float32, "F32"),
  "bfloat16": (ml_dtypes.bfloat16, "BF16"),
  "float16": (np.float16, "F16"),
}
# From here on values round to infinity in float16, whose largest is 65,504.
_FLOAT16_END = 65520
# Names of the dtypes of exported weights.
DTYPES = tuple(_CODES)
# The header is padded to this, so that the values of any dtype are aligned in the file.
_ALIGNMENT = 8
_BLOCK_BYTES = 2**26


class ShardedWriter:
  """Writes the weights of a model into a directory; `write` each tensor once, in any order.

  The files are those of transformers' `save_pretrained`: model.safetensors, or, if the tensors
  have more bytes than `most`, model-00001-of-0000N.safetensors and on, with their index.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    *,
    dtype: str = "float32",
    most: int | None = None,
  ) -> None:
    """Makes all files, with their headers and zeros in the place of values.

    Args:
      directory: an existing directory on a disk.
      tensors: name and shape of every tensor; consecutive ones share a file.
      dtype: dtype to which the values are cast, one of `DTYPES`.
      most: bytes of tensors in a file, at most; None for `MOST_BYTES`.

    Raises:
      InputError: `dtype` is another.
    """
    check_dtype(dtype)
    self._dtype, code = _CODES[dtype]
    self._shapes = dict(tensors)
    size = np.dtype(self._dtype).itemsize
    lengths = {name: math.prod(shape) * size for name, shape in tensors}
    groups = _grouped(lengths, MOST_BYTES if most is None else most)
    self._places: dict[str, tuple[pathlib.Path, int]] = {}
    for number, names in enumerate(groups, 1):
      file = f"model-{number:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else SINGLE
      self._start(directory / file, code, {name: lengths[name] for name in names})
    if len(groups) > 1:
      metadata = {
        "total_parameters": sum(lengths.values()) // size,
        "total_size": sum(lengths.values()),
      }
      files = {name: self._places[name][0].name for name in sorted(lengths)}
      text = json.dumps({"metadata": metadata, "weight_map": files}, indent=2)
      (directory / INDEX).write_text(text + "\n", "utf-8")

  def _start(self, path: pathlib.Path, code: str, lengths: dict[str, int]) -> None:
    """Writes the header of a file, and makes room for the values."""
    # transformers refuses files whose metadata do not name a framework.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, length in sorted(lengths.items()):
      shape = list(self._shapes[name])
      header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + length]}
      end += length
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    first = 8 + len(text)
    with open(path, "wb") as file:
      file.write(len(text).to_bytes(8, "little") + text)
      file.truncate(first + end)
    for name in lengths:
      self._places[name] = path, first + header[name]["data_offsets"][0]

  def write(self, name: str, array: np.ndarray) -> None:
    """Writes the values of a tensor, cast to the dtype of the files.

    Raises:
      InputError: the files are of float16, which ends at 65,504, and a value lies beyond it.
      ValueError: the shape is not the announced one.
    """
    if tuple(array.shape) != tuple(self._shapes[name]):
      raise ValueError(f"{name} must have shape {self._shapes[name]}; got {array.shape}.")
    path, offset = self._places[name]
    with open(path, "r+b") as file:
      file.seek(offset)
      # A block at a time, since each is copied: cast, or transposed.
      for index in blocks(array.shape, array.dtype.itemsize, _BLOCK_BYTES):
        block = self._cast(name, array[index])
        file.write(block.reshape(-1).view(np.uint8).data)

  def _cast(self, name: str, values: np.ndarray) -> np.ndarray:
    """The values in the dtype of the files, contiguous; none of them becomes infinite."""
    if self._dtype is np.float16:
      largest = float(np.max(np.abs(values), initial=0))
      if np.isfinite(largest) and largest >= _FLOAT16_END:
        raise InputError(
          f"{name} has a value of magnitude {largest:.6g}, and float16 ends at 65504; export with "
          "config.export.dtype=bfloat16, which has the range of float32."
        )
    return np.ascontiguousarray(values, self._dtype)


def check_dtype(dtype: str) -> None:
  """Checks the name of a dtype of exported weights.

  Raises:
    InputError: it is none of `DTYPES`.
  """
  if dtype not in DTYPES:
    raise InputError(f'dtype must be one of {", ".join(DTYPES)}; got "{dtype}".')


def _grouped(lengths: dict[str, int], most: int) -> list[list[str]]:
  """Names of consecutive tensors that share a file; one empty group if there are none."""
  groups: list[list[str]] = [[]]
  held = 0
  for name, length in lengths.items():
    if groups[-1] and held + length > most:
      groups.append([])
      held = 0
    groups[-1].append(name)
    held += length
  return groups
