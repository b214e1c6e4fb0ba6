"""ArrayRecord files: written in shards, checked before they are used."""

from __future__ import annotations

from collections.abc import Iterable

from array_record.python import array_record_module
from etils import epath

from egad_jax.data.cached_directory import damaged

_RECORDS_PER_SHARD = 65_536


def write_shards(
  directory: epath.Path, prefix: str, records: Iterable[bytes]
) -> list[dict[str, str | int]]:
  """Writes records into `prefix-00000.array_record`, …; returns [{"file", "records"}, …]."""
  shards: list[dict[str, str | int]] = []
  writer = None
  count = 0
  for record in records:
    if writer is None:
      file = f"{prefix}-{len(shards):05d}.array_record"
      # One record a group: a random read decompresses nothing else, damage costs one record.
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
    InputError: if the file is missing, cut short, or not what was written.
  """
  if not path.exists():
    raise damaged(path, "is missing")
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    found = reader.num_records()
    # A file that could not be opened counts as empty until it is closed: only that raises.
    reader.close()
  except (RuntimeError, ValueError) as error:
    raise damaged(path, f"cannot be opened ({_first_line(error)}); it may be cut short") from error
  if found != records:
    raise damaged(path, f"holds {found} records instead of {records}")


def _first_line(error: Exception) -> str:
  return str(error).split("\n", 1)[0][:200]
