"""Writes ArrayRecord files in shards, and checks them before they are used."""

from __future__ import annotations

from collections.abc import Iterable

from array_record.python import array_record_module
from etils import epath

from egad_jax.data.cached_directory import damaged

_RECORDS_PER_SHARD = 65_536


def write_shards(
  directory: epath.Path, prefix: str, records: Iterable[bytes]
) -> list[dict[str, str | int]]:
  """Writes records into shards.

  Args:
    directory: an existing directory on a disk.
    prefix: begin of the files' names, which are `prefix-00000.array_record`, ….
    records: bytes of each record.

  Returns:
    "file", the name, and "records", their number, of each shard in order.
  """
  shards: list[dict[str, str | int]] = []
  writer = None
  count = 0
  for record in records:
    if writer is None:
      file = f"{prefix}-{len(shards):05d}.array_record"
      # Groups of one record: a random read decompresses one record, and damage loses one.
      writer = array_record_module.ArrayRecordWriter(str(directory / file), "group_size:1")
      shards.append({"file": file, "records": 0})
    writer.write(record)
    count += 1
    shards[-1]["records"] = count
    if count == _RECORDS_PER_SHARD:
      writer.close()
      writer, count = None, 0
  if writer is not None:
    writer.close()
  return shards


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
