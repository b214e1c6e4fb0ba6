"""Tests of copying arrays to devices: the values are those of the files on any mesh."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from egad_jax import device_arrays, sharding
from egad_jax.lazy_arrays import LazyArray, from_numpy
from egad_jax.models import family, layout
from egad_jax.models.config import DecoderConfig
from egad_jax.models.directory_layout import SINGLE
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import make_model
from tests.models.safetensors_files import write_safetensors

CONFIG = DecoderConfig(
  vocab_size=48,
  dim=16,
  num_layers=5,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  mlp_dim=24,
  max_seq_len=64,
  tie_embeddings=False,
)
MIXED = {"data": 2, "fsdp": 2, "tensor": 2}


def mesh_of(**sizes):
  shape = dict.fromkeys(sharding.AXES, 1) | sizes
  count = int(np.prod(list(shape.values())))
  return sharding.make_mesh(shape, jax.devices()[:count])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A Hugging Face directory of random bfloat16 values."""
  path = tmp_path_factory.mktemp("model")
  data = family.config_to_hf(CONFIG, bos_id=1, eos_id=2, pad_id=2, dtype="bfloat16")
  (path / "config.json").write_text(json.dumps(data))
  random = np.random.default_rng(0)
  arrays = {
    tensor.hf: random.standard_normal(tensor.shape).astype(np.float32)
    for tensor in family.tensors(CONFIG)
  }
  write_safetensors(path / SINGLE, arrays, dtype="bfloat16")
  return path, arrays


def eager(arrays):
  """The parameters as they are read whole: transposed and stacked by numpy alone."""
  params = {}
  for tensor in family.tensors(CONFIG):
    (part,) = tensor.parts
    node = params
    for key in part.path[:-1]:
      node = node.setdefault(key, {})
    array = arrays[tensor.hf].astype(ml_dtypes.bfloat16)
    array = (array.T if tensor.matrix else array).reshape(part.shape)
    node.setdefault(part.path[-1], []).append(array)
  is_list = lambda x: isinstance(x, list)
  stacked = jax.tree.map(np.stack, params["layers"], is_leaf=is_list)
  whole = jax.tree.map(lambda x: x[0], params, is_leaf=is_list)
  return whole | {"layers": stacked}


def common(tree, larger):
  """The part of a larger tree that has the keys of `tree`."""
  if not isinstance(tree, dict):
    return larger
  return {key: common(value, larger[key]) for key, value in tree.items()}


@pytest.mark.parametrize(
  ("sizes", "block_bytes", "dtype"),
  [
    ({}, 2**26, "bfloat16"),
    ({}, 2**26, "float32"),
    ({}, 70, "bfloat16"),
    ({"fsdp": 8}, 2**26, "bfloat16"),
    ({"tensor": 8}, 2**26, "bfloat16"),
    (MIXED, 2**26, "float32"),
    (MIXED, 900, "bfloat16"),
  ],
)
def test_parameters_from_files_are_those_read_eagerly(
  directory, monkeypatch, sizes, block_bytes, dtype
):
  monkeypatch.setattr(device_arrays, "BLOCK_BYTES", block_bytes)
  path, arrays = directory
  lazy = load_pretrained(str(path)).params
  if block_bytes < 2**26:
    # Every shape of a block is compiled for every device.
    attention = lazy["layers"]["block_0"]["attention"]
    lazy = {"final_norm": lazy["final_norm"], "unembedding": lazy["unembedding"]}
    lazy["layers"] = {"block_0": {"attention": {"output": attention["output"]}}}
  axes = common(lazy, make_model(CONFIG).logical_axes())
  shardings = sharding.parameter_shardings(mesh_of(**sizes), axes, lazy)
  placed = device_arrays.put(lazy, shardings, jax.tree.map(lambda _: np.dtype(dtype), lazy))
  wanted = common(lazy, eager(arrays))
  assert jax.tree.map(lambda x: x.sharding, placed) == shardings

  def check(got, array):
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(got), array.astype(dtype))

  jax.tree.map(check, placed, wanted)


def test_a_process_reads_every_value_once(monkeypatch):
  monkeypatch.setattr(device_arrays, "BLOCK_BYTES", 1000)
  array = np.random.default_rng(0).standard_normal((4, 16, 24)).astype(np.float32)
  count = np.zeros(array.shape, int)

  def fill(out, slices):
    assert out.nbytes <= 1000
    count[slices] += 1
    out[...] = array[slices]

  placed = device_arrays.put(
    LazyArray(array.shape, fill),
    jax.sharding.NamedSharding(
      mesh_of(fsdp=4, tensor=2), jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    ),
  )
  assert (count == 1).all()
  np.testing.assert_array_equal(placed, array)


def test_arrays_of_layers_reach_the_memory_of_the_host():
  mesh = mesh_of(fsdp=2)
  if not sharding.has_host_memory(mesh):
    pytest.skip("these devices have no host memory")
  array = np.arange(64.0, dtype=np.float32).reshape(4, 4, 4)
  spec = jax.sharding.PartitionSpec(None, "fsdp")
  target = jax.sharding.NamedSharding(mesh, spec, memory_kind=sharding.HOST)
  placed = device_arrays.put(from_numpy(array), target)
  assert placed.sharding == target
  np.testing.assert_array_equal(placed, array)


def test_numpy_arrays_are_cast():
  tree = {"a": np.arange(6.0)}
  whole = sharding.replicated(mesh_of(fsdp=2))
  placed = device_arrays.put(tree, {"a": whole}, {"a": np.dtype(np.float32)})
  assert placed["a"].dtype == np.float32
  np.testing.assert_array_equal(placed["a"], np.arange(6.0))


@pytest.mark.parametrize("block_bytes", [40, 300, 10_000])
@pytest.mark.parametrize(
  ("spec", "at"),
  [
    ((None, "fsdp", "tensor"), ()),
    ((None, "fsdp", "tensor"), (2,)),
    ((None, "fsdp"), (1,)),
    (("tensor", None, "fsdp"), (3,)),
    (("fsdp", "tensor"), (1, 3)),
    ((), ()),
  ],
  ids=str,
)
def test_arrays_come_back_in_blocks(monkeypatch, block_bytes, spec, at):
  monkeypatch.setattr(device_arrays, "BLOCK_BYTES", block_bytes)
  array = np.arange(240.0, dtype=np.float32).reshape(4, 6, 10)
  sharding_ = jax.sharding.NamedSharding(
    mesh_of(fsdp=2, tensor=2), jax.sharding.PartitionSpec(*spec)
  )
  sharded = jax.device_put(array, sharding_)
  np.testing.assert_array_equal(device_arrays.get(sharded, at, None), array[at])
  # As where the devices are those of several processes.
  out, fetched = np.empty_like(array[at]), []

  def fetch(block):
    fetched.append(block.nbytes)
    return np.asarray(block)

  device_arrays._copy(sharded, at, out, fetch)
  np.testing.assert_array_equal(out, array[at])
  assert sum(fetched) == array[at].nbytes
  assert max(fetched) <= max(block_bytes, 240)
  assert device_arrays.get(array, (), fetch) is array


def test_a_block_stays_split_until_it_is_fetched():
  spec = jax.sharding.PartitionSpec(None, "fsdp", None)
  sharding_ = jax.sharding.NamedSharding(mesh_of(fsdp=4), spec)
  sharded = jax.device_put(np.ones((3, 8, 5), np.float32), sharding_)

  def fetch(block):
    assert block.sharding.shard_shape(block.shape) == (1, 2, 5)
    return np.asarray(block)

  device_arrays._copy(sharded, (1,), np.empty((8, 5), np.float32), fetch)


def test_the_tensors_of_a_checkpoint_come_back(directory):
  path, arrays = directory
  params = load_pretrained(str(path)).params
  for tensor, array in layout.take_apart(family.tensors(CONFIG), params):
    wanted = arrays[tensor.hf].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(array.astype(ml_dtypes.bfloat16), wanted)
