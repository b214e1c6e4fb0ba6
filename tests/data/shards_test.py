"""ArrayRecord shards and their preflight."""

from __future__ import annotations

import pytest
from array_record.python import array_record_data_source
from etils import epath

from egad_jax.data import shards
from egad_jax.errors import InputError

_RECORDS = [bytes([i]) * 100 for i in range(7)]


@pytest.fixture
def directory(tmp_path, monkeypatch) -> epath.Path:
  monkeypatch.setattr(shards, "RECORDS_PER_SHARD", 3)
  return epath.Path(tmp_path)


def test_records_come_back_in_order_from_several_shards(directory):
  written = shards.write_shards(directory, "train", _RECORDS)
  assert written == [
    {"file": f"train-{i:05d}.array_record", "records": n} for i, n in enumerate([3, 3, 1])
  ]
  for shard in written:
    shards.check_shard(directory / shard["file"], shard["records"])
  paths = [str(directory / shard["file"]) for shard in written]
  assert list(array_record_data_source.ArrayRecordDataSource(paths)) == _RECORDS


def test_full_last_shard_makes_no_empty_one(directory):
  assert len(shards.write_shards(directory, "train", _RECORDS[:6])) == 2
  assert shards.write_shards(directory, "none", []) == []


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-200])


def _empty(path):
  path.write_bytes(b"")


def _remove(path):
  path.unlink()


def _replace(path):
  shards.write_shards(path.parent, path.name.split("-")[0], _RECORDS[:2])


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_truncate, "cut short|instead of 3"),
    (_empty, "cut short|instead of 3"),
    (_remove, "is missing"),
    (_replace, "holds 2 records instead of 3"),
  ],
)
def test_damage_is_found_on_opening(directory, damage, message):
  shards.write_shards(directory, "train", _RECORDS[:3])
  path = directory / "train-00000.array_record"
  damage(path)
  with pytest.raises(InputError, match=message) as caught:
    shards.check_shard(path, 3)
  assert str(path) in str(caught.value)
  assert "Delete the directory" in str(caught.value)
