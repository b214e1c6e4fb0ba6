"""The mesh and the table of rules: which array axis lies over which devices."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import PartitionSpec

from egad_jax import device_arrays, from_config, sharding
from egad_jax.errors import InputError
from egad_jax.models.architectures import architecture
from egad_jax.models.model import make_model
from egad_jax.planning.environment import prepare_environment
from tests.from_config.configs import changed


def mesh_of(replica=1, data=1, fsdp=1, tensor=1, devices=None):
  return sharding.make_mesh(
    {"replica": replica, "data": data, "fsdp": fsdp, "tensor": tensor}, devices
  )


@pytest.mark.parametrize(
  ("given", "sizes"),
  [
    ({"fsdp": -1}, (1, 1, 8, 1)),
    ({"data": -1, "tensor": 2}, (1, 4, 1, 2)),
    ({"data": 2, "fsdp": 2, "tensor": 2}, (1, 2, 2, 2)),
    ({"replica": 8, "tensor": -1}, (8, 1, 1, 1)),
  ],
)
def test_a_mesh_uses_all_devices(given, sizes):
  mesh = mesh_of(**given)
  assert mesh.axis_names == sharding.AXES
  assert mesh.devices.shape == sizes
  assert set(mesh.devices.flat) == set(jax.devices())
  assert sharding.batch_devices(mesh) == 8 // sizes[-1]
  assert sharding.tensor_devices(mesh) == sizes[-1]


def test_a_mesh_of_given_devices():
  assert mesh_of(fsdp=-1, devices=jax.devices()[:3]).devices.shape == (1, 1, 3, 1)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"data": -1, "fsdp": -1}, r"at most one of them -1; got mesh\.replica=1, mesh\.data=-1"),
    ({"data": 0}, r"must be positive.*mesh\.data=0"),
    ({"fsdp": -2}, r"must be positive.*mesh\.fsdp=-2"),
    ({"fsdp": 4}, r"all 8 devices; got .*mesh\.fsdp=4.*a product of 4\. Set one axis to -1"),
    ({"data": 3, "fsdp": -1}, r"all 8 devices; got .*mesh\.data=3.*a product of 3"),
    ({"data": 16}, r"all 8 devices; got .*a product of 16"),
  ],
)
def test_a_mesh_that_does_not_fit_says_why(given, message):
  with pytest.raises(InputError, match=message):
    mesh_of(**given)


@pytest.fixture(scope="module")
def environment():
  """That of a plan, which libtpu reads."""
  before = dict(os.environ)
  prepare_environment("v5e:4x4")
  yield
  os.environ.clear()
  os.environ.update(before)


@pytest.fixture(scope="module")
def slices(environment):
  """Two slices of 16 TPUs, of 4 processes each."""
  return topologies.get_topology_desc("v5e:4x4", "tpu", num_slices=2).devices


def test_one_slice_needs_no_replicas(environment):
  devices = topologies.get_topology_desc("v5e:4x4", "tpu").devices
  assert not hasattr(devices[0], "slice_index")
  assert mesh_of(fsdp=-1, devices=devices).devices.shape == (1, 1, 16, 1)


@pytest.mark.parametrize(
  ("given", "sizes"),
  [
    ({"replica": 2, "fsdp": -1}, (2, 1, 16, 1)),
    ({"replica": -1, "fsdp": 8}, (4, 1, 8, 1)),
    ({"replica": 2, "data": 2, "fsdp": 2, "tensor": 4}, (2, 2, 2, 4)),
    ({"replica": -1}, (32, 1, 1, 1)),
  ],
)
def test_only_the_replica_axis_leaves_a_slice(slices, given, sizes):
  mesh = mesh_of(**given, devices=slices)
  assert mesh.devices.shape == sizes
  assert set(mesh.devices.flat) == set(slices)
  of_rows = [{device.slice_index for device in row.flat} for row in mesh.devices]
  half = sizes[0] // 2
  assert of_rows == [{0}] * half + [{1}] * half


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"fsdp": -1}, r"2 slices.*must be a multiple of that; got 1\. Set mesh\.replica=2"),
    ({"replica": 1, "data": 2, "fsdp": 16}, r"multiple of that; got 1"),
  ],
)
def test_slices_need_replicas(slices, given, message):
  with pytest.raises(InputError, match=message):
    mesh_of(**given, devices=slices)


def test_slices_are_of_one_size(slices):
  with pytest.raises(InputError, match=r"as many devices; got \{0: 16, 1: 4\}"):
    mesh_of(replica=2, fsdp=-1, devices=slices[:20])


def test_devices_that_are_no_block(slices):
  with pytest.raises(InputError, match=r"fsdp=6.* these 6 devices; they must be a block"):
    mesh_of(fsdp=-1, devices=slices[:6])


@pytest.mark.parametrize(
  "given",
  [
    {"replica": 2, "fsdp": -1},
    {"replica": 2, "data": 4, "tensor": 4},
    {"replica": 2, "tensor": 16},  # A tensor axis across processes.
    {"replica": 2, "data": 2, "fsdp": 2, "tensor": 4},
  ],
)
def test_the_rows_of_a_process_are_those_of_its_devices(slices, given):
  mesh, batch = mesh_of(**given, devices=slices), 64
  indices = sharding.batch_sharding(mesh).devices_indices_map((batch, 1))
  everything = set()
  for process in range(8):
    held = set()
    for device, index in indices.items():
      if device.process_index == process:
        held.update(range(batch)[index[0]])
    rows = sharding.process_rows(mesh, batch, process)
    assert rows == sorted(held)
    everything.update(rows)
  assert everything == set(range(batch))


def test_partition_spec():
  spec = sharding.partition_spec(("batch", "seq", None, "vocab"))
  assert spec == PartitionSpec(("replica", "data", "fsdp"), None, None, "tensor")


def test_a_name_without_a_rule():
  with pytest.raises(ValueError, match=r"\['pages'\] have no rule; add them to sharding\.RULES"):
    sharding.partition_spec(("pages", "embed"))


@pytest.mark.parametrize("axes", [("vocab", "mlp"), ("batch", "embed")])
def test_two_axes_over_the_same_devices(axes):
  with pytest.raises(ValueError, match=f"{axes[0]}.*{axes[1]}.*collide"):
    sharding.partition_spec(axes)


def specs(mesh, name):
  model = make_model(architecture(name))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  leaves = jax.tree.leaves_with_path(
    sharding.parameter_shardings(mesh, model.logical_axes(), shapes)
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.spec)
    for path, leaf in leaves
  }


def test_an_axis_that_its_devices_do_not_divide_stays_whole():
  # SmolLM2-135M has 9 heads of which 3 are key and value heads.
  table = specs(mesh_of(fsdp=4, tensor=2), "smollm2-135m")
  assert table["layers/block_0/attention/query"] == (None, "fsdp", None, None)
  assert table["layers/block_0/attention/key"] == (None, "fsdp", None, None)
  assert table["layers/block_0/mlp/gate"] == (None, "fsdp", "tensor")
  assert table["embedding"] == ("tensor", "fsdp")


def test_constrain_pins_what_divides():
  pin = sharding.constrain(mesh_of(data=4, tensor=2))
  pinned = jax.jit(lambda x: pin(x, ("batch", "seq", "heads")))(np.zeros((8, 5, 3)))
  assert pinned.sharding.shard_shape(pinned.shape) == (2, 5, 3)
  x = np.zeros(3)
  assert sharding.constrain(None)(x, ("heads",)) is x


def test_placed_arrays_are_what_they_were():
  mesh = mesh_of(data=2, fsdp=2, tensor=2)
  x = np.arange(32.0, dtype=np.float32).reshape(8, 4)
  rows = sharding.device_put_batch({"x": x}, mesh)["x"]
  assert rows.sharding.shard_shape(x.shape) == (2, 4)
  whole = device_arrays.put(x, sharding.replicated(mesh))
  assert whole.sharding.shard_shape(x.shape) == x.shape
  np.testing.assert_array_equal(rows, x)
  np.testing.assert_array_equal(whole, x)


# A mesh along whose rows the processes take turns, and one whose tensor axis goes across them.
TWO_PROCESSES = """
import sys
import jax
import numpy as np
from egad_jax import sharding

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
devices = np.array(jax.devices()).reshape(2, 2)
x = np.arange(32.0, dtype=np.float32).reshape(8, 4)
for order, shape, wanted in (
  (devices.T, {"data": 4, "tensor": 1}, ([0, 1, 4, 5], [2, 3, 6, 7])),
  (devices.T, {"data": 2, "tensor": 2}, ([0, 1, 2, 3, 4, 5, 6, 7],) * 2),
):
  mesh = sharding.make_mesh({"replica": 1, "fsdp": 1} | shape, list(order.flat))
  rows = sharding.process_rows(mesh, 8)
  assert rows == wanted[jax.process_index()], rows
  placed = sharding.device_put_batch({"x": x[rows]}, mesh)["x"]
  assert placed.shape == x.shape
  assert len(placed.addressable_shards) == 2
  for shard in placed.addressable_shards:
    np.testing.assert_array_equal(shard.data, x[shard.index])
"""


def test_two_processes_place_the_rows_that_they_read():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHONPATH": str(pathlib.Path(sharding.__file__).parents[1]),
  }
  command = [sys.executable, "-c", TWO_PROCESSES, address]
  started = [subprocess.Popen([*command, str(i)], env=environment) for i in (0, 1)]
  try:
    assert [process.wait(timeout=60) for process in started] == [0, 0]
  finally:
    for process in started:
      process.kill()


# What lies where, whole: whoever changes a rule, a model or the optimizer sees what that moves.
# The student's one key and value head is not divided by the tensor axis.
STUDENT = {
  "embedding": ("tensor", "fsdp"),
  "final_norm/scale": ("fsdp",),
  "layers/block_0/attention/key": (None, "fsdp", None, None),
  "layers/block_0/attention/output": (None, "tensor", None, "fsdp"),
  "layers/block_0/attention/query": (None, "fsdp", "tensor", None),
  "layers/block_0/attention/value": (None, "fsdp", None, None),
  "layers/block_0/attention_norm/scale": (None, "fsdp"),
  "layers/block_0/mlp/down": (None, "tensor", "fsdp"),
  "layers/block_0/mlp/gate": (None, "fsdp", "tensor"),
  "layers/block_0/mlp/up": (None, "fsdp", "tensor"),
  "layers/block_0/mlp_norm/scale": (None, "fsdp"),
}
TEACHER = {
  "embedding": ("tensor", "fsdp"),
  "final_norm/scale": ("fsdp",),
  "layers/block_0/attention/key": (None, "fsdp", "tensor", None),
  "layers/block_0/attention/output": (None, "tensor", None, "fsdp"),
  "layers/block_0/attention/query": (None, "fsdp", "tensor", None),
  "layers/block_0/attention/value": (None, "fsdp", "tensor", None),
  "layers/block_0/attention_norm/scale": (None, "fsdp"),
  "layers/block_0/mlp/down": (None, "tensor", "fsdp"),
  "layers/block_0/mlp/gate": (None, "fsdp", "tensor"),
  "layers/block_0/mlp/up": (None, "fsdp", "tensor"),
  "layers/block_0/mlp_norm/scale": (None, "fsdp"),
}
OPTIMIZER = {
  "1/count": (),
  "1/mu/method/kernel": (),
  **{f"1/mu/student/{path}": spec for path, spec in STUDENT.items()},
  "1/nu/method/kernel": (),
  **{f"1/nu/student/{path}": spec for path, spec in STUDENT.items()},
}


def table(tree):
  """{path: spec} of a tree of arrays with shardings."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.sharding.spec)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def test_where_everything_of_the_tiny_config_lies():
  run = from_config.plan_run(changed(mesh__data=2, mesh__fsdp=2, mesh__tensor=2), jax.devices())
  assert run.mesh.devices.shape == (1, 2, 2, 2)
  state = run.abstract_state()
  assert table(run.teacher.abstract_params()) == TEACHER
  assert table(state.trainable["student"]) == STUDENT
  assert table(state.trainable["method"]) == {"kernel": ()}
  assert table(state.opt_state) == OPTIMIZER


def test_the_embedding_is_looked_up_without_gathering_the_batch(capfd):
  """The compiler says when it can only gather everything everywhere: `Involuntary`."""
  mesh = mesh_of(data=2, fsdp=2, tensor=2)
  shape = dataclasses.replace(architecture("tiny"), num_layers=1)
  model = make_model(shape, constrain=sharding.constrain(mesh))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  placed = sharding.parameter_shardings(mesh, model.logical_axes(), shapes)
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed
  )
  ids = jax.ShapeDtypeStruct((8, 16), "int32", sharding=sharding.batch_sharding(mesh))
  apply = jax.jit(lambda params, ids: model.apply(params, ids, ids, ids)[0])
  program = apply.lower(like, ids).compile().as_text()
  assert "Involuntary" not in capfd.readouterr().err
  # Whole rows of all devices' tokens are nowhere.
  assert f"[8,16,{shape.dim}]" not in program
