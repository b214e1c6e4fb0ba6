"""The TPU chips and topologies that a plan can be made for, and the peaks of TPUs and GPUs."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from egad_jax.errors import InputError

_GIB, _GB, _TERA = 2**30, 1e9, 1e12


class Device(NamedTuple):
  """Facts about one device, as jax counts them: a chip, or a share of one.

  Attributes:
    hbm_bytes: bytes of memory; the compiler keeps a part of it (0.25 GiB on v5e) for itself.
    flops_per_second: peak FLOPs per second in bfloat16.
    hbm_bytes_per_second: bandwidth of the memory.
    ici_bytes_per_second: bandwidth of all links to other chips together, both directions.
    hertz: clock rate, in cycles per second.
  """

  hbm_bytes: int
  flops_per_second: float
  hbm_bytes_per_second: float
  ici_bytes_per_second: float
  hertz: float


class Chip(NamedTuple):
  """Facts about one whole chip, from its page of Google Cloud's TPU documentation.

  Attributes:
    device_kinds: values of its devices' `device_kind`: libtpu's first, then others that jax knows.
    hbm_bytes: bytes of memory.
    flops_per_second: peak FLOPs per second in bfloat16.
    hbm_bytes_per_second: bandwidth of the memory.
    ici_bytes_per_second: bandwidth of all links to other chips together, both directions.
    hertz: clock rate, peak / (2 * multiply-accumulate units), because the pages do not give it.
    shapes: the slices that exist, by their sides in chips, such as "2x4".
    source: address of the page.
    devices: number of jax devices that it is; they share memory, peak and bandwidths equally.
  """

  device_kinds: tuple[str, ...]
  hbm_bytes: int
  flops_per_second: float
  hbm_bytes_per_second: float
  ici_bytes_per_second: float
  hertz: float
  shapes: tuple[str, ...]
  source: str
  devices: int = 1

  @property
  def device(self) -> Device:
    """The facts about one of its devices."""
    return Device(
      self.hbm_bytes // self.devices,
      self.flops_per_second / self.devices,
      self.hbm_bytes_per_second / self.devices,
      self.ici_bytes_per_second / self.devices,
      self.hertz,
    )


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_SOLID += ("8x16x16", "16x16x16", "16x16x24")

CHIPS: dict[str, Chip] = {
  "v5e": Chip(
    device_kinds=("TPU v5 lite", "TPU v5e"),
    hbm_bytes=16 * _GIB,
    flops_per_second=197 * _TERA,
    hbm_bytes_per_second=819 * _GB,
    ici_bytes_per_second=400 * _GB,
    hertz=197 * _TERA / (2 * 4 * 128**2),
    shapes=_FLAT,
    source="https://docs.cloud.google.com/tpu/docs/v5e",
  ),
  "v5p": Chip(
    device_kinds=("TPU v5", "TPU v5p"),
    hbm_bytes=95 * _GIB,
    flops_per_second=459 * _TERA,
    hbm_bytes_per_second=2765 * _GB,
    ici_bytes_per_second=1200 * _GB,
    hertz=459 * _TERA / (2 * 8 * 128**2),
    shapes=_SOLID,
    source="https://docs.cloud.google.com/tpu/docs/v5p",
  ),
  "v6e": Chip(
    device_kinds=("TPU v6 lite", "TPU v6e"),
    hbm_bytes=32 * _GIB,
    flops_per_second=918 * _TERA,
    hbm_bytes_per_second=1638 * _GB,
    ici_bytes_per_second=800 * _GB,
    hertz=918 * _TERA / (2 * 4 * 256**2),
    shapes=_FLAT,
    source="https://docs.cloud.google.com/tpu/docs/v6e",
  ),
  # Its two chiplets are two devices, each with a core and half of the memory.
  "tpu7x": Chip(
    device_kinds=("TPU7x",),
    hbm_bytes=192 * _GIB,
    flops_per_second=2307 * _TERA,
    hbm_bytes_per_second=7380 * _GB,
    ici_bytes_per_second=1200 * _GB,
    hertz=2307 * _TERA / (2 * 8 * 256**2),
    shapes=_SOLID,
    source="https://docs.cloud.google.com/tpu/docs/tpu7x",
    devices=2,
  ),
}


# Peak FLOPs per second of a device in dense bfloat16, by its `device_kind`. NVIDIA's pages for H100
# and H200 give twice as much, "with sparsity".
_PEAKS = {
  **{k: chip.device.flops_per_second for chip in CHIPS.values() for k in chip.device_kinds},
  # https://www.nvidia.com/en-us/data-center/a100/
  "NVIDIA A100-SXM4-40GB": 312 * _TERA,
  "NVIDIA A100-SXM4-80GB": 312 * _TERA,
  "NVIDIA A100-PCIE-40GB": 312 * _TERA,
  "NVIDIA A100 80GB PCIe": 312 * _TERA,
  # https://www.nvidia.com/en-us/data-center/h100/
  "NVIDIA H100 80GB HBM3": 1979 / 2 * _TERA,
  "NVIDIA H100 PCIe": 1513 / 2 * _TERA,
  "NVIDIA H100 NVL": 1671 / 2 * _TERA,
  # https://www.nvidia.com/en-us/data-center/h200/
  "NVIDIA H200": 1979 / 2 * _TERA,
}


def peak_flops(device_kind: str) -> float | None:
  """Peak FLOPs per second of a device in dense bfloat16; None for a kind that is not known here.

  >>> peak_flops("TPU v5 lite")
  197000000000000.0
  """
  return _PEAKS.get(device_kind)


class Topology(NamedTuple):
  """A slice of a TPU pod: `v5e:16x16` is 256 chips of kind v5e.

  Attributes:
    name: libtpu's name of the topology, CHIP:SHAPE.
    chip: kind of chip, a key of `CHIPS`.
    devices: number of jax devices on all its chips.
  """

  name: str
  chip: str
  devices: int

  @property
  def chips(self) -> int:
    """Number of chips in the slice."""
    return self.devices // CHIPS[self.chip].devices


def topology(name: str) -> Topology:
  """Parses the name of a topology, CHIP:SHAPE.

  Raises:
    InputError: there is no such chip, or no slice of that shape.

  >>> topology("v5p:2x4x4")
  Topology(name='v5p:2x4x4', chip='v5p', devices=32)
  >>> topology("tpu7x:2x2x1")
  Topology(name='tpu7x:2x2x1', chip='tpu7x', devices=8)
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
  if not found or found[1] not in CHIPS:
    raise InputError(
      f"--topology must be CHIP:SHAPE such as v5e:2x2, of a chip {', '.join(CHIPS)}; got {name!r}. "
      "GPU programs compile only on a machine with a GPU: plan the config for a TPU slice of as "
      "many devices, whose bytes of teacher, student and optimizer a device are about the same."
    )
  chip, shape = found.groups()
  shapes = CHIPS[chip].shapes
  if shape not in shapes:
    raise InputError(
      f"--topology: there is no slice {shape} of {chip}; there are {', '.join(shapes)}."
    )
  chips = math.prod(map(int, shape.split("x")))
  return Topology(name, chip, chips * CHIPS[chip].devices)
