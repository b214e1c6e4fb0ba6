"""Tests of reading models from an object store by ranges of bytes."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from egad_jax.data.tokenizer import Tokenizer
from egad_jax.errors import InputError
from egad_jax.models import safetensors_ranges
from egad_jax.models.directory_layout import INDEX
from egad_jax.models.load import load_pretrained
from tests.models import tiny_llama


def upload(directory, bucket):
  for path in directory.iterdir():
    epath.Path(path).copy(bucket / path.name)
  return bucket


def test_a_model_in_a_store_is_that_on_the_disk(tmp_path, bucket):
  directory = tiny_llama.make(tmp_path / "model")
  (directory / "README.md").write_text("---\nlicense: mit\n---\n")
  remote = upload(directory, bucket)
  there, here = load_pretrained(str(remote)), load_pretrained(str(directory))
  assert (there.config, there.license, there.unread) == (here.config, here.license, ())
  assert there.name == "run"
  jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
  assert Tokenizer.from_source(str(remote)).vocab_size == 260
  part = there.params["layers"]["block_0"]["mlp"]["down"][1, 3:9, 2:4]
  np.testing.assert_array_equal(part, here.params["layers"]["block_0"]["mlp"]["down"][1, 3:9, 2:4])


def test_missing_shards_and_directories_are_named(tmp_path, bucket):
  directory = tiny_llama.make(tmp_path / "model")
  weight_map = dict.fromkeys(tiny_llama.tensors(), "model-00001-of-00001.safetensors")
  (directory / "model.safetensors").unlink()
  (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
  remote = upload(directory, bucket)
  with pytest.raises(InputError, match=r"model-00001-of-00001\.safetensors: no such file"):
    load_pretrained(str(remote))
  with pytest.raises(InputError, match=r"no such directory.*copy it to a disk"):
    load_pretrained(str(bucket / "model.gguf"))


def file_of(header, data=b""):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\0\0\0",
    (10**15).to_bytes(8, "little") + b"{}",
    file_of(b"{"),
    file_of(b"[]"),
    file_of({"a": entry()}, bytes(15)),
    file_of({"a": entry()}, bytes(17)),
    file_of({"a": entry(shape=(2, 3))}, bytes(16)),
    file_of({"a": entry(offsets=(4, 20))}, bytes(20)),
    file_of({"a": entry(), "b": entry()}, bytes(16)),
    file_of({"a": entry(shape=(-2, -2))}, bytes(16)),
    file_of({"a": entry(dtype="I8", offsets=(0, -4))}),
    file_of({"a": {"dtype": "F32"}}, bytes(16)),
    file_of({"a": []}),
  ],
)
def test_damaged_files_are_refused(tmp_path, content):
  path = tmp_path / "a.safetensors"
  path.write_bytes(content)
  with pytest.raises(InputError, match=r"is not a whole safetensors file|is not valid JSON|object"):
    safetensors_ranges.read_header(path)
  # The safetensors package agrees.
  with pytest.raises(Exception, match=r"."):
    safetensors.numpy.load_file(path)


def test_headers_are_those_that_the_package_reads(tmp_path):
  arrays = tiny_llama.tensors()
  tiny_llama.save(arrays, tmp_path / "a.safetensors")
  places = safetensors_ranges.read_header(tmp_path / "a.safetensors")
  assert {name: at.shape for name, at in places.items()} == {k: a.shape for k, a in arrays.items()}
  for name, at in places.items():
    got = safetensors_ranges.read(tmp_path / "a.safetensors", at, (slice(1, 7),) * len(at.shape))
    np.testing.assert_array_equal(got, arrays[name][(slice(1, 7),) * len(at.shape)])
