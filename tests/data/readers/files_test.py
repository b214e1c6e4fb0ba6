"""Kinds of files and data sets: all give the same records, and damage is named."""

from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from egad_jax.data.readers import json_files, sources
from egad_jax.data.readers.records import BadRecords
from egad_jax.errors import InputError

_RECORDS = [
  {"id": i, "messages": [{"role": "user", "content": f"é {i}"}, {"role": "x", "content": "y" * i}]}
  for i in range(30)
]


def _read(source, maximum=0):
  bad = BadRecords(maximum)
  [opened] = sources.open_sources(str(source))
  return [record for part in opened.parts for _, record in part.read(bad)], bad.count


def _lines() -> bytes:
  return b"".join(json.dumps(record).encode() + b"\n" for record in _RECORDS)


def _write(path, data: bytes):
  if path.suffix == ".gz":
    data = gzip.compress(data)
  elif path.suffix == ".zst":
    # The file has two frames, as `cat a.zst b.zst` makes one.
    half = len(data) // 2
    data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
  path.write_bytes(data)
  return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".lines.json"])
def test_files_of_json(tmp_path, kind, suffix):
  data = json.dumps(_RECORDS, indent=1).encode() if kind == ".json" else _lines()
  assert _read(_write(tmp_path / f"a{kind}{suffix}", data)) == (_RECORDS, 0)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_in_pieces(tmp_path, monkeypatch, size, indent):
  monkeypatch.setattr(json_files, "_READ", size)
  values = [*_RECORDS[:3], {"text": "a, ]"}, {}]
  path = _write(tmp_path / "a.json", json.dumps(values, indent=indent, ensure_ascii=False).encode())
  assert [value for _, value in json_files.read_json(path, BadRecords(0))] == values


@pytest.mark.parametrize(
  ("content", "problem"),
  [
    ('[{"text": "a"}', r"a\.json, element 2: not valid JSON"),
    ('[{"text": "a"} {"text": "b"}]', "element 2: not valid JSON .no comma"),
    ('[{"text": "a"}, {"text": b}]', "element 2: not valid JSON"),
    ("[" * 100_000, "element 1: not valid JSON .RecursionError"),
  ],
)
def test_a_broken_array_is_an_error(tmp_path, content, problem):
  path = tmp_path / "a.json"
  path.write_text(content)
  with pytest.raises(InputError, match=problem):
    list(json_files.read_json(path, BadRecords(9)))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz"])
@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_compressed_file_that_is_cut_short_is_named(tmp_path, name, kept):
  path = _write(tmp_path / name, _lines())
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * kept)])
  with pytest.raises(InputError, match=rf"{name}: the compressed data end too early: .* cut short"):
    _read(path, maximum=10**9)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_what_is_not_compressed_is_named(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(_lines())
  with pytest.raises(InputError, match=rf"{name}: cannot be decompressed .* rename it"):
    _read(path)


def test_parquet(tmp_path):
  table = pyarrow.Table.from_pylist(_RECORDS)
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
  assert _read(tmp_path / "a.parquet") == (_RECORDS, 0)
  data = (tmp_path / "a.parquet").read_bytes()
  (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
  with pytest.raises(InputError, match=r"a\.parquet: cannot be read behind row 0"):
    _read(tmp_path / "a.parquet")


def test_one_bad_line_in_many(tmp_path):
  lines = _lines().split(b"\n")
  lines[17] = b'{"messages": ['
  path = _write(tmp_path / "a.jsonl.zst", b"\n".join(lines))
  with pytest.raises(InputError, match="line 18: not valid JSON"):
    _read(path)
  assert _read(path, maximum=1) == ([r for r in _RECORDS if r["id"] != 17], 1)


def test_a_data_set_that_datasets_saved(tmp_path):
  datasets = pytest.importorskip("datasets")
  made = datasets.Dataset.from_list(_RECORDS)
  made.save_to_disk(tmp_path / "saved")
  datasets.DatasetDict({"train": made, "test": made.select([3])}).save_to_disk(tmp_path / "splits")
  assert _read(f"hf:{tmp_path}/saved") == _read(f"hf:{tmp_path}/splits") == (_RECORDS, 0)
  assert _read(f"hf:{tmp_path}/splits#test") == ([_RECORDS[3]], 0)
  with pytest.raises(InputError, match=r"splits#dev': KeyError"):
    _read(f"hf:{tmp_path}/splits#dev")


def test_a_directory_of_files_through_datasets(tmp_path, monkeypatch):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  (tmp_path / "set").mkdir()
  _write(tmp_path / "set" / "train.jsonl", _lines())
  assert _read(f"hf:{tmp_path}/set") == (_RECORDS, 0)


def test_a_data_set_that_tfds_prepared(tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")

  class Chats(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    name = "chats"
    code_path = None

    def _info(self):
      message = {"role": tfds.features.Text(), "content": tfds.features.Text()}
      features = {"id": tfds.features.Scalar(np.int64), "messages": tfds.features.Sequence(message)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {"train": enumerate(_RECORDS), "test": enumerate(_RECORDS[:2])}

    def _generate_examples(self):
      raise NotImplementedError

  builder = Chats(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig())
  found, _ = _read(f"tfds:{tmp_path}/chats/1.0.0")
  assert sorted(found, key=lambda record: record["id"]) == _RECORDS
  assert len(_read(f"tfds:{tmp_path}/chats/1.0.0#test")[0]) == 2
  with pytest.raises(InputError, match=r"data\.source 'tfds:no_such_set'"):
    _read("tfds:no_such_set")


@pytest.mark.parametrize(
  ("source", "module"), [("hf:a/b", "datasets"), ("tfds:a", "tensorflow_datasets")]
)
def test_a_package_that_is_missing_is_named(monkeypatch, source, module):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(InputError, match=rf"needs the Python package {module.replace('_', '-')}"):
    _read(source)


def test_a_data_set_without_a_network_is_an_error(monkeypatch, tmp_path):
  datasets = pytest.importorskip("datasets")
  monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
  with pytest.raises(InputError, match="without a network, give the directory of a copy"):
    _read("hf:nobody/nothing_of_that_name")


@pytest.mark.parametrize(
  ("record", "expected"),
  [
    ({"messages": [], "text": "a"}, "messages"),
    ({"prompt": "a", "completion": "b"}, "prompt_completion"),
    ({"instruction": "a", "output": "b"}, "alpaca"),
    ({"conversations": [{"from": "human", "value": "a"}]}, "messages"),
    ({"text": "a", "id": 3}, "text"),
  ],
)
def test_the_format_is_found_out_and_said(tmp_path, record, expected, caplog):
  path = _write(tmp_path / "a.jsonl", b"{\n" + json.dumps(record).encode())
  caplog.set_level("INFO")
  [source] = sources.open_sources(str(path))
  assert source.format == expected
  assert f"a.jsonl: records of the format {expected}" in caplog.text


def test_a_format_that_cannot_be_found_out_is_an_error(tmp_path):
  path = _write(tmp_path / "a.jsonl", b'{"body": "a"}\n')
  with pytest.raises(InputError, match=r"line 1, has the keys \['body'\]; .* text=body"):
    sources.open_sources(str(path))


def test_several_sources_with_weights(tmp_path):
  first = _write(tmp_path / "a.jsonl", b'{"text": "a"}\n')
  second = _write(tmp_path / "b*2", b"")
  _write(tmp_path / "c.jsonl", b'{"messages": []}\n')
  found = sources.open_sources((f"{first}*0.5", f"{tmp_path}/c.jsonl*3"))
  assert [(source.weight, source.format) for source in found] == [(0.5, "text"), (3, "messages")]
  assert sources.split_names(f"{first}*2, hf:x*.5") == [(str(first), 2), ("hf:x", 0.5)]
  # A file of that very name is no weight.
  assert sources.split_names(str(second)) == [(str(second), 1)]
  for wrong in ("a.jsonl*0", "a,,b", ""):
    with pytest.raises(InputError, match=r"data\.source"):
      sources.split_names(wrong)
