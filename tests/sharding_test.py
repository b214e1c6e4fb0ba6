"""The mesh and the table of rules: which array axis lies over which devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from egad_jax import sharding
from egad_jax.errors import InputError
from egad_jax.models.architectures import architecture
from egad_jax.models.model import make_model


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


def test_partition_spec():
  spec = sharding.partition_spec(("batch", "seq", None, "vocab"))
  assert spec == PartitionSpec(("replica", "data", "fsdp"), None, None, "tensor")


def test_a_name_without_a_rule():
  with pytest.raises(ValueError, match=r"\['experts'\] have no rule; add them to sharding\.RULES"):
    sharding.partition_spec(("experts", "embed"))


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


def test_the_parameters_of_the_tiny_model():
  assert specs(mesh_of(data=2, fsdp=2, tensor=2), "tiny") == {
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
  rows = sharding.place_batch({"x": x}, mesh)["x"]
  assert rows.sharding.shard_shape(x.shape) == (2, 4)
  whole = sharding.place(x, sharding.replicated(mesh))
  assert whole.sharding.shard_shape(x.shape) == x.shape
  np.testing.assert_array_equal(rows, x)
  np.testing.assert_array_equal(whole, x)
