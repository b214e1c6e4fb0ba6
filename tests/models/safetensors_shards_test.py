"""Tests of writing safetensors a tensor at a time, against the safetensors package."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from egad_jax.errors import InputError
from egad_jax.models import safetensors_shards
from egad_jax.models.directory_layout import INDEX, SINGLE
from egad_jax.models.safetensors_shards import ShardedWriter
from tests.models.safetensors_files import write_safetensors

RANDOM = np.random.default_rng(0)
# A name that JSON escapes, another length of the header than a multiple of 8, an odd size.
ARRAYS = {
  "z.weight": RANDOM.standard_normal((3, 4)).astype(np.float32),
  "a.ü": RANDOM.standard_normal(7).astype(np.float32),
  "m": RANDOM.standard_normal((2, 3, 5)).astype(np.float32),
}


def write(directory, names=tuple(ARRAYS), **options):
  writer = ShardedWriter(directory, [(name, a.shape) for name, a in ARRAYS.items()], **options)
  for name in names:
    writer.write(name, ARRAYS[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_file_is_that_of_the_package(tmp_path, dtype):
  write(tmp_path, names=("m", "z.weight", "a.ü"), dtype=dtype)
  write_safetensors(tmp_path / "theirs", ARRAYS, dtype=dtype)
  assert (tmp_path / SINGLE).read_bytes() == (tmp_path / "theirs").read_bytes()
  assert not (tmp_path / INDEX).exists()


@pytest.mark.parametrize(
  ("most", "files"), [(1, 3), (48, 3), (76, 2), (100, 2), (195, 2), (196, 1), (None, 1)]
)
def test_files_hold_no_more_than_they_may(tmp_path, most, files):
  write(tmp_path, most=most)
  paths = sorted(tmp_path.glob("*.safetensors"))
  assert len(paths) == files
  read = {}
  for path in paths:
    tensors = safetensors.numpy.load_file(path)
    size = sum(a.nbytes for a in tensors.values())
    assert len(tensors) == 1 or size <= (most or 10**9)
    read |= tensors
  assert read.keys() == ARRAYS.keys()
  for name, array in read.items():
    np.testing.assert_array_equal(array, ARRAYS[name])
  if files == 1:
    return
  assert [p.name for p in paths] == [
    f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)
  ]
  index = json.loads((tmp_path / INDEX).read_text())
  assert index["metadata"] == {"total_parameters": 49, "total_size": 196}
  assert all(
    name in safetensors.numpy.load_file(tmp_path / file)
    for name, file in index["weight_map"].items()
  )


def test_values_are_rounded_to_the_dtype(tmp_path):
  write(tmp_path, dtype="bfloat16")
  read = safetensors.numpy.load_file(tmp_path / SINGLE)
  for name, array in read.items():
    np.testing.assert_array_equal(array, ARRAYS[name].astype(ml_dtypes.bfloat16))


def test_float16_refuses_what_it_cannot_hold(tmp_path):
  """65,519 rounds to the largest value, 65,520 is half-way to the next and rounds to infinity."""
  writer = ShardedWriter(tmp_path, [("a", (2,))], dtype="float16")
  writer.write("a", np.array([1e-9, -65519.0], np.float32))
  read = safetensors.numpy.load_file(tmp_path / SINGLE)["a"]
  np.testing.assert_array_equal(read, np.array([0, -65504], np.float16))
  for value in (65520.0, -65520.0, 1e9):
    with pytest.raises(InputError, match=r"a has a value of magnitude .*dtype=bfloat16"):
      writer.write("a", np.array([0.0, value], np.float32))


def test_views_are_written_in_order_whatever_the_block(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors_shards, "_BLOCK_BYTES", 20)
  array = np.arange(24.0, dtype=np.float32).reshape(4, 6)
  writer = ShardedWriter(tmp_path, [("a", (6, 4))])
  writer.write("a", array.T)
  np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / SINGLE)["a"], array.T)


def test_another_shape_or_dtype_is_refused(tmp_path):
  writer = ShardedWriter(tmp_path, [("a", (2, 3))])
  with pytest.raises(ValueError, match=r"a must have shape \(2, 3\); got \(3, 2\)"):
    writer.write("a", np.zeros((3, 2)))
  with pytest.raises(InputError, match='one of float32, bfloat16, float16; got "int8"'):
    ShardedWriter(tmp_path, [], dtype="int8")
