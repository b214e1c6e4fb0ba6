"""Writes ArrayRecord files in shards, and checks them before they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from array_record.python import array_record_module
from etils import epath

from egad_jax.data.cached_directory import damaged

RECORDS_PER_SHARD = 65_536
_READ_TOGETHER = 256
# {"file": its name, "records": their number}.
Shard = dict[str, Any]


def write_shards(
  directory: epath.Path,
  prefix: str,
  records: Iterable[bytes],
  *,
  together: int = 1,
  before: Sequence[Shard] = (),
  when_full: Callable[[list[Shard]], None] = lambda shards: None,
) -> list[Shard]:
  """Writes records into shards.

  Args:
    directory: an existing directory on a disk.
    prefix: begin of the files' names, which are `prefix-00000.array_record`, ….
    records: bytes of each record.
    together: records that are compressed together. With 1 a random read decompresses one record,
      and damage loses one; more of them take less space and are read in turn.
    before: full shards that were written before, by a process that was interrupted.
    when_full: called with all shards whenever one is full and closed.

  Returns:
    "file", the name, and "records", their number, of each shard in order.
  """
  shards = list(before)
  writer = None
  count = 0
  for record in records:
    if writer is None:
      file = f"{prefix}-{len(shards):05d}.array_record"
      writer = array_record_module.ArrayRecordWriter(
        str(directory / file), f"group_size:{together}"
      )
      shards.append({"file": file, "records": 0})
    writer.write(record)
    count += 1
    shards[-1]["records"] = count
    if count == RECORDS_PER_SHARD:
      writer.close()
      writer, count = None, 0
      when_full(shards)
  if writer is not None:
    writer.close()
  return shards


def read_shards(
  directory: epath.Path, shards: Iterable[Shard], *, start: int = 0
) -> Iterator[bytes]:
  """Yields the records of shards in turn.

  Args:
    directory: the directory of the shards.
    shards: as `write_shards` returned them.
    start: number of the first record that is read.

  Raises:
    InputError: a shard is damaged.
  """
  for shard in shards:
    if start >= shard["records"]:
      start -= shard["records"]
      continue
    path = directory / shard["file"]
    try:
      reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
      for first in range(start, shard["records"], _READ_TOGETHER):
        last = min(first + _READ_TOGETHER, shard["records"])
        yield from reader.read(first, last)
      reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
      raise damaged(path, f"cannot be read ({_first_line(error)})") from error
    start = 0


def check_shard(path: epath.Path, records: int) -> None:
  """Opens a shard and compares its number of records, so that damage shows before a run starts.

  Raises:
    InputError: the file is missing or truncated, or holds another number of records.
  """
  if not path.exists():
    raise damaged(path, "is missing")
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    found = reader.num_records()
    # If the file could not be opened, only `close` raises; until then the file seems empty.
    reader.close()
  except (RuntimeError, ValueError) as error:
    raise damaged(path, f"cannot be opened ({_first_line(error)}); it may be cut short") from error
  if found != records:
    raise damaged(path, f"holds {found} records instead of {records}")


def _first_line(error: Exception) -> str:
  return str(error).split("\n", 1)[0][:200]
