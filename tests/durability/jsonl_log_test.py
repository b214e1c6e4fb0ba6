"""Tests of .jsonl files: resumed, cut short, on a full disk, in a stand-in for an object store."""

from __future__ import annotations

import errno
import math

import pytest

from egad_jax.durability import jsonl_log
from egad_jax.durability.jsonl_log import JsonlLog, read_jsonl


@pytest.fixture(params=["disk", "bucket"])
def path(request, tmp_path, bucket):
  if request.param == "disk":
    return jsonl_log.epath.Path(tmp_path) / "x.jsonl"
  return bucket / "x.jsonl"


def written(path, steps, *, last_step=0):
  file = JsonlLog(path, last_step=last_step)
  for step in steps:
    file.append({"step": step, "loss": step / 3})
  file.sync()


def test_an_unfinished_last_line_is_dropped_and_written_over(path):
  written(path, (1, 2))
  path.write_text(path.read_text() + '{"step": 3, "lo')
  assert [r["step"] for r in read_jsonl(path)] == [1, 2]
  file = JsonlLog(path, last_step=9)
  file.append({"step": 3, "loss": math.nan})
  file.sync()
  assert path.read_text().splitlines()[2:] == ['{"step": 3, "loss": null}']


def test_lines_are_cut_back_to_a_step(path):
  assert read_jsonl(path) == []
  assert JsonlLog(path, last_step=5).last is None
  written(path, (2, 4, 6, 8))
  assert JsonlLog(path, last_step=6).last == {"step": 6, "loss": 2.0}
  assert read_jsonl(path) == [{"step": s, "loss": s / 3} for s in (2, 4, 6)]
  JsonlLog(path, last_step=5)
  assert [record["step"] for record in read_jsonl(path)] == [2, 4]


def test_a_process_that_does_not_write_reads(path):
  written(path, (1, 2))
  other = JsonlLog(path, last_step=1, writes=False)
  other.append({"step": 2})
  other.sync()
  assert other.last == {"step": 2}
  assert not other._waiting, "it would grow for ever"
  assert read_jsonl(path)[1] == {"step": 2, "loss": 2 / 3}


def test_a_full_disk_delays_lines_and_leaves_them_whole(tmp_path, monkeypatch, caplog):
  path = jsonl_log.epath.Path(tmp_path) / "x.jsonl"
  file = JsonlLog(path, last_step=0)
  file.append({"step": 1})

  def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(jsonl_log.os, "fsync", full)  # The text got there or not: nobody knows.
    for step in (2, 3):
      file.append({"step": step})
  assert caplog.text.count("No space left on device") == 1
  file.append({"step": 4})
  assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3, 4]
  assert path.read_text().count("\n") == 4


def test_an_object_is_not_written_anew_for_each_line(bucket, monkeypatch):
  path = bucket / "x.jsonl"
  file = JsonlLog(path, last_step=0)
  writes = []
  original = jsonl_log.write_text
  monkeypatch.setattr(jsonl_log, "write_text", lambda *a: (writes.append(a), original(*a)))
  for step in range(50):
    file.append({"step": step})
  file.sync()
  assert len(writes) == 1
  assert len(read_jsonl(path)) == 50


@pytest.mark.parametrize(
  "tail", [b"\0" * 900, b"\xff\xfe\n", b"[1]\n", b"[" * 10**5, b'{"a": 1}\n']
)
def test_what_is_no_record_ends_the_file(path, tail):
  written(path, (1, 2))
  path.write_bytes(path.read_bytes() + tail)
  assert [r["step"] for r in read_jsonl(path)] == [1, 2]
