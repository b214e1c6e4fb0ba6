"""Tests of reading JSON files that other programs, or people, wrote."""

from __future__ import annotations

import time

import pytest

from egad_jax.errors import InputError
from egad_jax.files.json_file import parse_json, read_json


def test_reads_an_object(tmp_path):
  (tmp_path / "a.json").write_text('{"a": [1, 2.5, null, true], "é": {"a": -1e300}}', "utf-8")
  assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None, True], "é": {"a": -1e300}}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", r"is not valid JSON: Expecting value"),
    (b'{"a": 1', "is not valid JSON"),
    (b"[1]", "expected a JSON object; got list"),
    (b"null", "expected a JSON object; got NoneType"),
    (b'\xef\xbb\xbf{"a": 1}', "is UTF-8 with a byte-order mark; save it as plain UTF-8"),
    ('{"a": 1}'.encode("utf-16"), "is UTF-16; save it as plain UTF-8"),
    (b'{"a": "\xe9"}', "is not valid JSON: 'utf-8' codec can't decode"),
    (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice"),
    (b'{"x": [{"\\n": 1, "\\u000a": 2}]}', r"the key '\\n' is there twice"),
    (b'{"a": NaN}', "NaN is no number in JSON"),
    (b'{"a": [-Infinity]}', "-Infinity is no number in JSON"),
    (b'{"a": 1e999}', "1e999 is too large a number"),
    (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON: Exceeds the limit"),
    (b"[" * 100_000, "is not valid JSON"),
    (b'{"a":' * 100_000, "is not valid JSON"),
  ],
)
def test_what_could_mean_two_things_is_refused(content, message):
  with pytest.raises(InputError, match=r"a\.json.*" + message):
    parse_json("a.json", content)


def test_files_that_are_none(tmp_path):
  for name in ("absent.json", ".", "a" * 300):
    with pytest.raises(InputError, match=r"no such file|cannot be read|it is a directory"):
      read_json(tmp_path / name)
  with (tmp_path / "huge.json").open("wb") as file:
    file.truncate(2**28 + 1)
  with pytest.raises(InputError, match="more than 268435456 bytes are too many"):
    read_json(tmp_path / "huge.json")


def test_a_key_that_is_twice_among_many_is_found_at_once():
  text = "{" + ", ".join(f'"{i}": 0' for i in range(200_000)) + ', "199999": 1}'
  started = time.process_time()
  with pytest.raises(InputError, match="the key '199999' is there twice"):
    parse_json("a.json", text.encode())
  assert time.process_time() - started < 10
