"""Headers of GGUF files that claim what the file does not hold, written here byte by byte."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest

from egad_jax.errors import InputError
from egad_jax.files.gguf_file import as_list, open_gguf

_STRING, _ARRAY, _UINT32, _F32 = 8, 9, 4, 0


def _text(value: str) -> bytes:
  return struct.pack("<Q", len(value)) + value.encode()


def _key(name: str, value: int) -> bytes:
  return _text(name) + struct.pack("<II", _UINT32, value)


def _tensor(name: str, *dims: int, kind: int = _F32, offset: int = 0) -> bytes:
  return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def _file(*, keys=(), tensors=(), data=b"", num_keys=None, num_tensors=None, version=3) -> bytes:
  counts = [len(tensors), len(keys)]
  given = [num_tensors, num_keys]
  counts = [c if g is None else g for c, g in zip(counts, given, strict=True)]
  header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*keys, *tensors))
  return header + bytes(-len(header) % 32) + data


def test_reads_metadata_and_tensors(tmp_path):
  path = tmp_path / "a.gguf"
  values = np.arange(6, dtype="<f4").tobytes()
  array = _text("list") + struct.pack("<IIQ2H", _ARRAY, 2, 2, 5, 6)
  text = _text("text") + struct.pack("<I", _STRING) + _text("né")[:8] + "né".encode()
  text = _text("text") + struct.pack("<IQ", _STRING, len("né".encode())) + "né".encode()
  path.write_bytes(
    _file(keys=(_key("a", 7), array, text), tensors=(_tensor("t", 3, 2),), data=values)
  )
  metadata, tensors = open_gguf(path)
  assert metadata == {"a": 7, "list": [5, 6], "text": "né"}
  assert metadata["list"] != [5]
  assert metadata["list"] not in (False, None, 5, [])
  assert repr(metadata["list"]) == "[5, 6]"
  assert as_list(metadata["list"]) == [5, 6]
  assert as_list(metadata["a"]) is None
  assert tensors["t"].shape == (2, 3)
  np.testing.assert_array_equal(tensors["t"].data.view("<f4"), [[0, 1, 2], [3, 4, 5]])


_HUGE = {
  "keys": _file(num_keys=2**63),
  "tensors": _file(num_tensors=2**64 - 1),
  "text": _file(keys=(_text("k") + struct.pack("<IQ", _STRING, 2**60),)),
  "numbers": _file(keys=(_text("k") + struct.pack("<IIQ", _ARRAY, 0, 2**60),)),
  "texts": _file(keys=(_text("k") + struct.pack("<IIQ", _ARRAY, _STRING, 2**60),)),
  "arrays": _file(keys=(_text("k") + struct.pack("<IIQ", _ARRAY, _ARRAY, 2**60),)),
  "shape": _file(tensors=(_tensor("t", 2**32, 2**32),), data=bytes(64)),
  "size": _file(tensors=(_tensor("t", 2**60),), data=bytes(64)),
  "offset": _file(tensors=(_tensor("t", 4, offset=2**63),), data=bytes(64)),
  "axes": _file(tensors=(_text("t") + struct.pack("<I", 2**31),), data=bytes(64)),
  "alignment": _file(keys=(_key("general.alignment", 2**31),), tensors=(_tensor("t", 4),)),
}


@pytest.mark.parametrize("claim", _HUGE)
def test_claims_beyond_the_file_take_no_memory(tmp_path, claim):
  path = tmp_path / "a.gguf"
  path.write_bytes(_HUGE[claim])
  tracemalloc.start()
  with pytest.raises(InputError, match=r"a.gguf \(\d+ bytes\) is not a whole GGUF file"):
    open_gguf(path)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**20


def _array(kind: int, count: int, content: bytes) -> bytes:
  return _text("k") + struct.pack("<IIQ", _ARRAY, kind, count) + content


@pytest.mark.parametrize(
  ("array", "first"),
  [
    (_array(1, 10**6, b"\xc8" * 10**6), -56),
    (_array(7, 10**6, b"\1" * 10**6), True),
    (_array(2, 500_000, b"\xc8\xc8" * 500_000), 51400),
    (_array(_STRING, 20_000, _text("ab") * 20_000), "ab"),
    (_array(_STRING, 20_000, _text("") * 20_000), ""),
    (_array(_STRING, 5_000, _text("abcdefgh" * 8) * 5_000), "abcdefgh" * 8),
  ],
)
def test_arrays_take_less_memory_than_the_file(tmp_path, array, first):
  path = tmp_path / "a.gguf"
  path.write_bytes(_file(keys=(array,)))
  tracemalloc.start()
  read = open_gguf(path).metadata["k"]
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 1.2 * path.stat().st_size
  assert list(read[:2]) == [first] * 2
  assert as_list(read)[-1] == first


@pytest.mark.parametrize("what", ["num_keys", "num_tensors"])
def test_more_entries_than_any_model_has_are_refused(tmp_path, what):
  path = tmp_path / "a.gguf"
  path.write_bytes(_file(**{what: 2**14 + 1}) + bytes(2**20))
  with pytest.raises(InputError, match=r"16385.* more than any model"):
    open_gguf(path)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "it is empty"),
    (b"PK\x03\x04" * 9, "does not start with GGUF"),
    (_file(version=2**24 * 3), "its version is 50331648, not 2 or 3 of little-endian GGUF"),
    (_file(keys=(_key("k", 1), _key("k", 2))), "the key 'k' is there twice"),
    (_file(tensors=(_tensor("t", 4),) * 2, data=bytes(64)), "the tensor 't' is there twice"),
    (_file(tensors=(_tensor("t", 4, kind=999),), data=bytes(64)), "'t' is of unknown type 999"),
    (_file(tensors=(_tensor("t", 33, kind=8),), data=bytes(99)), "are no whole blocks"),
    (_file(keys=(_key("general.alignment", 3),)), "general.alignment is 3, not a power of two"),
    (_file(keys=(_text("k") + struct.pack("<I", 99),)), "unknown type 99"),
  ],
)
def test_damage_is_named(tmp_path, content, message):
  path = tmp_path / "a.gguf"
  path.write_bytes(content)
  with pytest.raises(InputError, match=message):
    open_gguf(path)


def test_tensors_that_share_bytes_are_refused(tmp_path):
  # A thousand names for the same bytes would be a thousand times the file in memory.
  tensors = tuple(_tensor(f"t{i}", 1024) for i in range(1000))
  path = tmp_path / "a.gguf"
  path.write_bytes(_file(tensors=tensors, data=bytes(4096)))
  with pytest.raises(InputError, match="its tensors overlap"):
    open_gguf(path)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match=r"a\.gguf cannot be read: No such file"):
    open_gguf(tmp_path / "a.gguf")
