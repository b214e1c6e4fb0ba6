"""Sorting on the disk: in order, in parts, and after an interruption."""

from __future__ import annotations

import hashlib

from egad_jax.data import sorted_files
from egad_jax.data.sorted_files import SortedFiles


def _entries(count):
  return [(hashlib.md5(str(i).encode()).digest(), str(i).encode()) for i in range(count)]


def test_records_come_in_the_order_of_their_keys(tmp_path, monkeypatch):
  entries = _entries(3000)
  expected = [record for _, record in sorted(entries)]
  for name, most in (("a", 2**24), ("b", 200)):
    # With little memory each file is split again, and those again.
    monkeypatch.setattr(sorted_files, "_IN_MEMORY", most)
    files = SortedFiles(tmp_path / name)
    for entry in entries:
      files.add(*entry)
    assert list(files.read()) == expected
    files.remove()
  assert not list(tmp_path.iterdir())


def test_equal_keys_end_the_splitting(tmp_path, monkeypatch):
  monkeypatch.setattr(sorted_files, "_IN_MEMORY", 10)
  files = SortedFiles(tmp_path / "a")
  for _ in range(9):
    files.add(b"k" * 16, b"record")
  assert list(files.read()) == [b"record"] * 9


def test_what_came_behind_a_note_is_forgotten(tmp_path):
  entries = _entries(500)
  files = SortedFiles(tmp_path)
  for entry in entries[:300]:
    files.add(*entry)
  sizes = files.sizes()
  for entry in entries[100:400]:
    files.add(*entry)
  files.close()
  again = SortedFiles(tmp_path, sizes)
  for entry in entries[300:]:
    again.add(*entry)
  assert list(again.read()) == [record for _, record in sorted(entries)]
