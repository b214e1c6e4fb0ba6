"""Reads files that zstd compressed, and notices when they are cut short."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from egad_jax.errors import InputError

# Bytes of compressed data that are decompressed at once. It bounds what one step may expand to.
_INPUT = 2**16
# Bytes of text that the decompressor may look back; what `zstd --long` needs by default.
_WINDOW = 2**27


class ZstError(ValueError):
  """Compressed data that are damaged."""


class _Decompressed(io.RawIOBase):
  """The content of all frames of a file, as a stream.

  The package's own stream ends without an error where a file is cut short.
  """

  def __init__(self, file: BinaryIO) -> None:
    import zstandard

    self._file = file
    self._error = zstandard.ZstdError
    self._decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    self._frame: Any = None
    self._input, self._output, self._at = b"", b"", 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while self._at == len(self._output):
      if not self._input and not self._read_more():
        return 0
      if self._frame is None:
        self._frame = self._decompressor.decompressobj()
      try:
        self._output, self._at = self._frame.decompress(self._input), 0
      except self._error as error:
        raise ZstError(str(error)) from error
      self._input = b""
      if self._frame.eof:
        self._input, self._frame = self._frame.unused_data, None
    size = min(len(buffer), len(self._output) - self._at)
    buffer[:size] = self._output[self._at : self._at + size]
    self._at += size
    return size

  def _read_more(self) -> bool:
    self._input = self._file.read(_INPUT)
    if not self._input and self._frame is not None:
      raise EOFError("inside a frame")
    return bool(self._input)


def open_zst(file: BinaryIO) -> BinaryIO:
  """Opens compressed data for reading; `EOFError` is raised where they end too early.

  Raises:
    InputError: the package zstandard is missing.
    ZstError: while it is read, the data are damaged.
  """
  try:
    return io.BufferedReader(_Decompressed(file), 2**20)
  except ImportError as error:
    raise InputError(
      "a .zst file needs the Python package zstandard: pip install zstandard, or decompress it."
    ) from error
