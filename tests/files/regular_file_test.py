"""Pipes, devices, sockets, directories and files without rights, under the names of files."""

from __future__ import annotations

import os
import pathlib
import socket

import pytest

from egad_jax import sources
from egad_jax.data import cached_directory
from egad_jax.data.readers.jsonl import read_jsonl
from egad_jax.data.readers.records import BadRecords
from egad_jax.data.readers.text_files import read_text
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.durability import jsonl_log
from egad_jax.errors import InputError
from egad_jax.files import regular_file, storage
from egad_jax.files.gguf_file import open_gguf
from egad_jax.files.regular_file import open_regular, read_regular, require_regular
from egad_jax.models.load import load_pretrained
from egad_jax.models.safetensors_io import read_json


@pytest.fixture(params=["pipe", "link to a pipe", "socket", "device", "directory"])
def other(request, tmp_path):
  """Makes something that is no file, under a name."""
  opened = []

  def make(name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if request.param == "pipe":
      os.mkfifo(path)
    elif request.param == "link to a pipe":
      os.mkfifo(tmp_path / "elsewhere")
      path.symlink_to(tmp_path / "elsewhere")
    elif request.param == "socket":
      opened.append(socket.socket(socket.AF_UNIX))
      opened[-1].bind(str(path))
    elif request.param == "device":
      path.symlink_to("/dev/zero")
    else:
      path.mkdir()
    return path

  yield make
  for each in opened:
    each.close()


def kind(path):
  if path.is_fifo():
    return "a pipe"
  return "a directory" if path.is_dir() else "a socket" if path.is_socket() else "a device"


@pytest.mark.parametrize(
  ("name", "read"),
  [
    ("x", open_regular),
    ("x.json", read_json),
    ("x.gguf", open_gguf),
    ("x.jsonl", jsonl_log.read_jsonl),
    ("summary.json", storage.read_json),
    ("manifest.json", lambda path: cached_directory.read_manifest(path.parent)),
    ("tokenizer.json", lambda path: Tokenizer.from_directory(path.parent)),
    ("config.json", lambda path: load_pretrained(str(path.parent))),
    ("x.txt", lambda path: list(read_text(path, BadRecords(0), is_lone=True))),
    ("y.jsonl", lambda path: list(read_jsonl(path, BadRecords(0)))),
  ],
)
def test_what_is_no_file_is_refused_at_once_by_whatever_reads(other, name, read):
  path = jsonl_log.epath.Path(other(name))
  with pytest.raises(InputError, match=f"{name} must be a file; it is {kind(pathlib.Path(path))}"):
    read(path)


def test_weights_that_are_no_file_are_refused(other, tmp_path):
  from egad_jax.models import safetensors_io
  from egad_jax.models.family import families

  path = other("model.safetensors")
  with pytest.raises(InputError, match="it is a"):
    safetensors_io._find_tensors(path.parent, families()["llama"])


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("absent", "No such file or directory"),
    ("x" * 300, "File name too long"),
    ("loop", "Too many levels of symbolic links"),
    ("file/below", "Not a directory"),
    # Python 3.13 words it otherwise than 3.11.
    ("nul\0", "is no name of a file: .*embedded null (byte|character)"),
  ],
)
def test_what_cannot_be_opened_is_named(tmp_path, name, words):
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  (tmp_path / "file").write_text("x")
  with pytest.raises(InputError, match=words):
    open_regular(tmp_path / name)


@pytest.mark.parametrize(("error", "words"), [("EACCES", "Make it readable"), ("ESTALE", "See to")])
def test_what_the_system_refuses_is_named(tmp_path, monkeypatch, error, words):
  number = getattr(os, error, None) or getattr(regular_file.errno, error)

  def refuse(*args):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(regular_file.os, "open", refuse)
  with pytest.raises(InputError, match=rf"cannot be read: {os.strerror(number)}\. {words}"):
    require_regular(tmp_path / "x")


def test_a_model_in_a_directory_that_may_not_be_looked_into(tmp_path, monkeypatch):
  def refuse(*args, **options):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(regular_file.os, "lstat", refuse)
  monkeypatch.setattr(regular_file.os, "open", refuse)
  with pytest.raises(InputError, match=r"config\.json cannot be read: Permission denied"):
    read_json(tmp_path / "config.json")


def test_files_are_read_up_to_a_size(tmp_path):
  path = tmp_path / "x"
  path.write_bytes(b"12345")
  assert read_regular(path, most=5) == b"12345"
  assert require_regular(path) == 5
  with pytest.raises(InputError, match="more than 4 bytes"):
    read_regular(path, most=4)
  # Files of /proc have no size, and some have no end.
  assert read_regular("/proc/self/environ") == b""


def test_an_object_of_a_store_is_read(bucket):
  (bucket / "x").write_text("12345")
  assert read_regular(bucket / "x") == b"12345"
  with pytest.raises(InputError, match="cannot be read"):
    read_regular(bucket / "absent")


def test_a_source_that_may_not_be_looked_at_is_named_as_such(monkeypatch, tmp_path):
  def refuse(self):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(pathlib.Path, "exists", refuse)
  with pytest.raises(InputError, match=r"/model': Permission denied"):
    sources.resolve(tmp_path / "model")
