"""Which topologies exist."""

from __future__ import annotations

import pytest

from egad_jax.chips import CHIPS, peak_flops, topology
from egad_jax.errors import InputError
from egad_jax.planning.environment import prepare_environment


def test_a_topology_is_a_chip_and_a_number_of_devices():
  assert topology("v5e:16x16")[1:] == ("v5e", 256)
  assert topology("v5p:2x4x4")[1:] == ("v5p", 32)
  assert (topology("v5p:2x4x4").chips, topology("v5p:2x4x4").devices) == (32, 32)


def test_a_chip_of_tpu7x_is_two_devices():
  slice_ = topology("tpu7x:2x2x1")
  assert (slice_.chips, slice_.devices) == (4, 8)
  device = CHIPS["tpu7x"].device
  # A fourth of 768 GiB of HBM, the four chips of a machine, is on each chip.
  assert 8 * device.hbm_bytes == 768 * 2**30
  assert device.flops_per_second == 1153.5e12
  assert device.hbm_bytes_per_second == 3690e9
  assert device.ici_bytes_per_second == 600e9
  # A chip of one device keeps what it has.
  assert CHIPS["v5p"].device.hbm_bytes == 95 * 2**30


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v9:2x2", r"a chip v5e, v5p, v6e, tpu7x; got 'v9:2x2'"),
    ("v5e", r"must be CHIP:SHAPE such as v5e:2x2"),
    ("v5e:3x5", r"no slice 3x5 of v5e; there are 1x1, 2x2, "),
    # libtpu would make these two, but nobody can rent them.
    ("v5e:4x4x4", r"no slice 4x4x4 of v5e"),
    ("v5e:16x32", r"no slice 16x32 of v5e"),
    ("tpu7x:2x2", r"no slice 2x2 of tpu7x; there are 2x2x1, "),
    ("tpu7x:8", r"no slice 8 of tpu7x"),
  ],
)
def test_a_topology_that_does_not_exist(name, message):
  with pytest.raises(InputError, match=message):
    topology(name)


def test_every_chip_is_of_round_numbers():
  for name, chip in CHIPS.items():
    assert 1.4e9 < chip.hertz < 2.3e9, name
    # Above this many FLOPs a byte a matmul is bound by its arithmetic.
    assert 150 < chip.flops_per_second / chip.hbm_bytes_per_second < 600
    assert chip.source.startswith("https://docs.cloud.google.com/tpu/")


def test_peaks_are_known_by_the_kind_that_a_device_says_it_is():
  assert peak_flops("TPU v5") == CHIPS["v5p"].flops_per_second
  assert peak_flops("TPU v5p") == 459e12
  # A device is half of a chip, whose peak is 2307e12.
  assert peak_flops("TPU7x") == 1153.5e12
  assert peak_flops("NVIDIA H100 80GB HBM3") == 989.5e12
  assert peak_flops("NVIDIA H200") == 989.5e12
  assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
  assert peak_flops("cpu") is None


def test_the_environment_is_the_chip_s():
  environment = {"JAX_PLATFORMS": "tpu", "HOME": "/"}
  prepare_environment("v5p:2x2x1", environment)
  assert environment["TPU_ACCELERATOR_TYPE"] == "v5p-8"
  prepare_environment("tpu7x:2x2x1", environment)
  assert environment["TPU_ACCELERATOR_TYPE"] == "tpu7x-8"
  assert (environment["JAX_PLATFORMS"], environment["HOME"]) == ("cpu", "/")


def test_a_missing_compiler_is_named(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"planning needs the TPU compiler, libtpu: pip install"):
    prepare_environment("v5e:2x2", {})
  prepare_environment("v5e:2x2", {"TPU_LIBRARY_PATH": "/lib/libtpu.so"})
