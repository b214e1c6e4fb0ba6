"""Sorts records by a key on a disk, in memory that does not grow with their number."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Iterator, Mapping

KEY_BYTES = 16
_HEADER = struct.Struct(f">{KEY_BYTES}sI")
_FILES_BITS = 6
# Bytes of one file that are sorted in memory; a larger file is first split by the key's next bits.
_IN_MEMORY = 2**22
_BUFFER = 2**16


class SortedFiles:
  """Records in files by the first bits of their keys; a file at a time is sorted in memory.

  What has been added up to a `sizes()` can be gone back to, also by another process.
  """

  def __init__(
    self, directory: pathlib.Path, sizes: Mapping[str, int] | None = None, *, skipped_bits: int = 0
  ) -> None:
    """Opens the files.

    Args:
      directory: the directory of the files, which is made if it is missing.
      sizes: what `sizes` returned; the files are cut to it. None begins with none.
      skipped_bits: number of the key's first bits that all records share.
    """
    directory.mkdir(parents=True, exist_ok=True)
    self._directory = directory
    self._shift = 8 * KEY_BYTES - skipped_bits - _FILES_BITS
    self._skipped_bits = skipped_bits
    self._files = []
    for path in self._paths():
      file = path.open("ab", buffering=_BUFFER)
      file.truncate((sizes or {}).get(path.name, 0))
      self._files.append(file)

  def _paths(self) -> list[pathlib.Path]:
    return [self._directory / f"{i:02x}" for i in range(1 << _FILES_BITS)]

  def add(self, key: bytes, record: bytes) -> None:
    """Adds a record with a key of 16 bytes."""
    place = int.from_bytes(key, "big") >> self._shift & (1 << _FILES_BITS) - 1
    self._files[place].write(_HEADER.pack(key, len(record)) + record)

  def sizes(self) -> dict[str, int]:
    """Bytes of each file, all of them on the disk."""
    for file in self._files:
      file.flush()
    return {path.name: path.stat().st_size for path in self._paths()}

  def close(self) -> None:
    """Closes the files; they stay."""
    for file in self._files:
      file.close()

  def read(self) -> Iterator[bytes]:
    """Yields the records in the order of their keys; closes the files for more."""
    self.close()
    for path in self._paths():
      if path.stat().st_size <= _IN_MEMORY or self._shift < _FILES_BITS:
        yield from (record for _, record in sorted(_entries(path), key=lambda entry: entry[0]))
        continue
      inner = SortedFiles(path.with_suffix(".split"), skipped_bits=self._skipped_bits + _FILES_BITS)
      for key, record in _entries(path):
        inner.add(key, record)
      yield from inner.read()
      inner.remove()

  def remove(self) -> None:
    """Removes the files and their directory."""
    self.close()
    for path in self._paths():
      path.unlink()
    self._directory.rmdir()


def _entries(path: pathlib.Path) -> Iterator[tuple[bytes, bytes]]:
  with path.open("rb", buffering=2**20) as file:
    while header := file.read(_HEADER.size):
      key, size = _HEADER.unpack(header)
      yield key, file.read(size)
