"""The TPU chips that a plan can be made for, and which topologies of them exist."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from egad_jax.errors import InputError

_GIB, _GB, _TERA = 2**30, 1e9, 1e12


class Chip(NamedTuple):
  """Facts about one chip, from its page of Google Cloud's TPU documentation.

  Attributes:
    hbm_bytes: memory; the compiler keeps a part of it (0.25 GiB on v5e) for itself.
    flops_per_second: peak in bfloat16.
    hbm_bytes_per_second: bandwidth of the memory.
    ici_bytes_per_second: of all links between chips together, both directions.
    hertz: clock, peak / (2 * multiply-accumulate units): the pages do not give it.
    shapes: the slices that exist.
    source: the page.
  """

  hbm_bytes: int
  flops_per_second: float
  hbm_bytes_per_second: float
  ici_bytes_per_second: float
  hertz: float
  shapes: tuple[str, ...]
  source: str


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
_SOLID += ("8x16x16", "16x16x16", "16x16x24")

CHIPS: dict[str, Chip] = {
  "v5e": Chip(
    hbm_bytes=16 * _GIB,
    flops_per_second=197 * _TERA,
    hbm_bytes_per_second=819 * _GB,
    ici_bytes_per_second=400 * _GB,
    hertz=197 * _TERA / (2 * 4 * 128**2),
    shapes=_FLAT,
    source="https://docs.cloud.google.com/tpu/docs/v5e",
  ),
  "v5p": Chip(
    hbm_bytes=95 * _GIB,
    flops_per_second=459 * _TERA,
    hbm_bytes_per_second=2765 * _GB,
    ici_bytes_per_second=1200 * _GB,
    hertz=459 * _TERA / (2 * 8 * 128**2),
    shapes=_SOLID,
    source="https://docs.cloud.google.com/tpu/docs/v5p",
  ),
  "v6e": Chip(
    hbm_bytes=32 * _GIB,
    flops_per_second=918 * _TERA,
    hbm_bytes_per_second=1638 * _GB,
    ici_bytes_per_second=800 * _GB,
    hertz=918 * _TERA / (2 * 4 * 256**2),
    shapes=_FLAT,
    source="https://docs.cloud.google.com/tpu/docs/v6e",
  ),
}


# Peak FLOPs per second of a device in dense bfloat16, by its `device_kind`. NVIDIA's pages give
# twice as much, "with sparsity".
_PEAKS = {
  "TPU v5 lite": CHIPS["v5e"].flops_per_second,
  "TPU v5": CHIPS["v5p"].flops_per_second,
  "TPU v6 lite": CHIPS["v6e"].flops_per_second,
  # https://www.nvidia.com/en-us/data-center/a100/
  "NVIDIA A100-SXM4-40GB": 312 * _TERA,
  "NVIDIA A100-SXM4-80GB": 312 * _TERA,
  "NVIDIA A100-PCIE-40GB": 312 * _TERA,
  "NVIDIA A100 80GB PCIe": 312 * _TERA,
  # https://www.nvidia.com/en-us/data-center/h100/
  "NVIDIA H100 80GB HBM3": 1979 / 2 * _TERA,
  "NVIDIA H100 PCIe": 1513 / 2 * _TERA,
}


def peak_flops(device_kind: str) -> float | None:
  """Peak FLOPs per second of a device in bfloat16; None of a kind that is not known here.

  >>> peak_flops("TPU v5 lite")
  197000000000000.0
  """
  return _PEAKS.get(device_kind)


class Topology(NamedTuple):
  """A slice of a TPU pod: `v5e:16x16` is 256 chips of kind v5e."""

  name: str
  chip: str
  devices: int


def topology(name: str) -> Topology:
  """Parses a topology.

  Raises:
    InputError: there is no such chip, or no slice of that shape.

  >>> topology("v5p:2x4x4")
  Topology(name='v5p:2x4x4', chip='v5p', devices=32)
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
  if not found or found[1] not in CHIPS:
    raise InputError(
      f"--topology must be CHIP:SHAPE such as v5e:2x2, of a chip {', '.join(CHIPS)}; got {name!r}. "
      "GPU programs compile only on a machine with a GPU: plan the config for a TPU slice of as "
      "many chips, whose bytes of teacher, student and optimizer a chip are about the same."
    )
  chip, shape = found.groups()
  shapes = CHIPS[chip].shapes
  if shape not in shapes:
    raise InputError(
      f"--topology: there is no slice {shape} of {chip}; there are {', '.join(shapes)}."
    )
  return Topology(name, chip, math.prod(map(int, shape.split("x"))))
