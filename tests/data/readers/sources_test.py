"""What is a document, and what happens to records that are none."""

from __future__ import annotations

import json
import os

import pytest

from egad_jax.data.readers import records, sources
from egad_jax.data.readers.formats import Fields
from egad_jax.data.readers.table import FORMATS
from egad_jax.data.spans import text_of
from egad_jax.errors import InputError


def _documents(source, bad: records.BadRecords) -> list[str]:
  """The texts that a source of the format text gives, white space alone left out."""
  found = []
  [opened] = sources.open_sources((str(source),), record_format="text")
  for part in opened.parts:
    for line, record in part.read(bad):
      try:
        found.append(text_of(FORMATS["text"].parse(record, Fields())))
      except records.BadRecord as error:
        bad.add(part.name, line, str(error))
  return [text for text in found if text.strip()]


def _read(source, maximum: int = 0) -> tuple[list[str], int]:
  bad = records.BadRecords(maximum)
  return _documents(source, bad), bad.count


def test_jsonl_lines_are_documents(tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_text('\ufeff{"text": "one\\ntwo", "id": 1}\n\n{"text": "  "}\n{"text": "é"}')
  assert _read(file) == (["one\ntwo", "é"], 0)


def test_files_of_a_directory_are_documents_in_order(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / ".hidden").mkdir()
  (tmp_path / "b.txt").write_text("b\n\n\n\nstill b\n")
  (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfa\r\n")
  (tmp_path / "sub" / "c.jsonl").write_text('{"text": "c"}\n')
  (tmp_path / "ignored.py").write_text("x")
  (tmp_path / ".hidden" / "d.txt").write_text("d")
  (tmp_path / "empty.txt").write_text("\n")
  assert _read(tmp_path) == (["a\r\n", "b\n\n\n\nstill b\n", "c"], 0)


def test_globs(tmp_path, monkeypatch):
  for name in ("a1.txt", "a2.txt", "b1.txt"):
    (tmp_path / name).write_text(name)
  assert _read(tmp_path / "a*.txt") == (["a1.txt", "a2.txt"], 0)
  monkeypatch.chdir(tmp_path)
  assert _read("?1.txt") == (["a1.txt", "b1.txt"], 0)


def test_lone_text_is_cut_at_two_blank_lines_and_form_feeds(tmp_path):
  file = tmp_path / "a.txt"
  file.write_text("one\n\nstill one\n\n \n\n\ntwo\nmore\fthree\f\ffour\n")
  assert _read(file) == (["one\n\nstill one", "two\nmore", "three", "four"], 0)


def test_long_lone_text_is_cut_at_the_next_blank_line(tmp_path):
  file = tmp_path / "a.md"
  paragraph = "word " * 1000
  file.write_text("\n\n".join([paragraph] * 5))
  texts, _ = _read(file)
  assert len(texts) == 3
  assert [text.count("word") for text in texts] == [2000, 2000, 1000]


@pytest.mark.parametrize(
  ("line", "problem"),
  [
    (b'{"text": "caf\xe9"}', "not valid UTF-8 (byte 0xe9"),
    (b'{"text": "cut', "not valid JSON"),
    (b'{"content": "x"}', "no string under \"text\" (found keys ['content'])"),
    (b'{"text": 3}', 'no string under "text" (found int, 3); put quotes around it'),
    (b'{"text": null}', 'no string under "text" (found NoneType, null); put quotes around it'),
    (b'["text"]', 'no string under "text" (found list)'),
    (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"text": ' + b"9" * 5000 + b"}", "too long a number"),
  ],
)
def test_bad_jsonl_is_named_by_file_and_line(tmp_path, line, problem):
  file = tmp_path / "a.jsonl"
  good = json.dumps({"text": "good"}).encode()
  file.write_bytes(b"\n".join([good, b"", line, good]))
  with pytest.raises(InputError) as caught:
    _read(file)
  message = str(caught.value)
  assert f"{file}, line 3: " in message
  assert problem in message
  assert "data.max_bad_records is 0" in message
  assert _read(file, maximum=1) == (["good", "good"], 1)


def test_one_more_than_allowed_is_an_error(tmp_path):
  file = tmp_path / "a.jsonl"
  file.write_text('{"text": "good"}\n{\n{\n{\n')
  assert _read(file, maximum=3)[1] == 3
  with pytest.raises(InputError, match=r"line 4: .* bad record number 3 .*max_bad_records is 2"):
    _read(file, maximum=2)


def test_a_text_file_that_is_not_utf8_is_one_bad_record(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"fine\nfine\n\xff\xfe\n\xff")
  (tmp_path / "b.txt").write_text("good")
  with pytest.raises(InputError, match=r"a\.txt, line 3: not valid UTF-8 \(byte 0xff"):
    _read(tmp_path)
  assert _read(tmp_path, maximum=1) == (["good"], 1)


def test_a_bad_line_spoils_its_document_only(tmp_path):
  file = tmp_path / "a.txt"
  file.write_bytes(b"one\n\n\nt\xffwo\nt\xffwo\n\n\nthree\n")
  with pytest.raises(InputError, match="line 4: not valid UTF-8"):
    _read(file)
  assert _read(file, maximum=1) == (["one", "three"], 1)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("missing.txt", "no such file or directory"),
    ("empty", "no files to read there"),
    ("*.txt", "no files to read there"),
    ("data.csv", r"is of kind '\.csv'; expected \.txt, \.md, \.jsonl"),
  ],
)
def test_sources_without_files_are_named(tmp_path, name, message):
  (tmp_path / "empty").mkdir()
  (tmp_path / "data.csv").write_text("a,b")
  with pytest.raises(InputError, match=message) as caught:
    sources.find_files(str(tmp_path / name))
  assert name in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
  (tmp_path / "a.txt").symlink_to("nowhere")
  with pytest.raises(InputError, match=r"a\.txt is no file to read"):
    sources.find_files(str(tmp_path))
  (tmp_path / "a.txt").unlink()
  # Opening it would wait for ever.
  os.mkfifo(tmp_path / "a.txt")
  with pytest.raises(InputError, match=r"a\.txt is no file to read"):
    sources.find_files(str(tmp_path))


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody_of_that_name/x", "a\0b", "~\0/a"])
def test_impossible_names_are_refused(name):
  with pytest.raises(InputError, match=r"data\.source"):
    sources.find_files(name)


def test_files_of_an_object_store_are_found_and_read(bucket):
  data = bucket / "data"
  data.mkdir(parents=True)
  for name in ("b.txt", "a.txt", "c.md", "d.bin"):
    (data / name).write_text(f"text of {name}")
  found = sources.find_files(str(data))
  assert [str(file) for file in found] == [f"{data}/{n}" for n in ("a.txt", "b.txt", "c.md")]
  assert sources.find_files(f"{data}/*.txt") == found[:2]
  assert sources.find_files(f"{data}/a.txt") == found[:1]
  assert _documents(data, records.BadRecords(0)) == [
    "text of a.txt",
    "text of b.txt",
    "text of c.md",
  ]
  with pytest.raises(InputError, match="no such file or directory"):
    sources.find_files(f"{bucket}/none")


def test_documents_without_end_are_left_out(tmp_path, monkeypatch):
  monkeypatch.setattr(records, "LONGEST_DOCUMENT", 20)
  monkeypatch.setattr(records, "LONGEST_RECORD", 20)
  (tmp_path / "whole").mkdir()
  lone, whole = tmp_path / "a.md", tmp_path / "whole"
  lone.write_text("one\n\n\n" + "x" * 61 + "\ny\n\n\ntwo\n" + "z\n" * 30)
  (whole / "b.txt").write_text("x" * 21)
  (whole / "c.jsonl").write_text('{"text": "one"}\n' + "x" * 100 + '\n{"text": "two"}\n')
  assert _read(lone, 9) == (["one"], 2)
  assert _read(whole, 9) == (["one", "two"], 2)
  with pytest.raises(InputError, match="line 2: a record of more than 20 bytes"):
    _read(whole / "c.jsonl")
