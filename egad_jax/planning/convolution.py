"""FLOPs of a convolution in a compiled program, two for each multiply-add with real elements."""

from __future__ import annotations

import math
import re

import numpy as np


def convolution_flops(
  left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...], attributes: str
) -> int:
  """FLOPs of a convolution; the TPU compiler writes matrix products in this form.

  Args:
    left: shape of the left operand, the input.
    right: shape of the right operand, the kernel.
    out: shape of the result.
    attributes: the instruction's attributes, as the program's text has them.

  Returns:
    The FLOPs; 0 if the attributes name no dimensions.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
  if not labels:
    return 0
  lhs, rhs, result = labels.groups()
  window = re.search(r"window=\{([^}]*)\}", attributes)
  fields = dict(part.split("=", 1) for part in window[1].split()) if window else {}
  spatial = sorted(set(result) - {"b", "f"})

  def values(name: str, default: str) -> list[str]:
    return fields[name].split("x") if name in fields else [default] * len(spatial)

  pads, strides = values("pad", "0_0"), values("stride", "1")
  left_dilations, right_dilations = values("lhs_dilate", "1"), values("rhs_dilate", "1")
  total = 2 * out[result.index("b")] * out[result.index("f")] * right[rhs.index("i")]
  for i, axis in enumerate(spatial):
    total *= _real_pairs(
      size=left[lhs.index(axis)],
      kernel=right[rhs.index(axis)],
      out=out[result.index(axis)],
      low=int(pads[i].split("_")[0]),
      stride=int(strides[i]),
      left_dilation=int(left_dilations[i]),
      right_dilation=int(right_dilations[i]),
    )
  groups = re.search(r"batch_group_count=(\d+)", attributes)
  return total // int(groups[1]) if groups else total


def _real_pairs(
  *,
  size: int,
  kernel: int,
  out: int,
  low: int,
  stride: int,
  left_dilation: int,
  right_dilation: int,
) -> int:
  """Number of (output, kernel) index pairs, along one axis, that meet an element of the input.

  The other pairs meet padding, or a hole that dilation leaves.
  """
  if kernel == 1 and not low and stride == left_dilation == 1:
    return min(out, size)
  # Output o meets element (o * stride - shift) / left_dilation of the input. The pairs may be too
  # many to list, so they are counted for each kernel index: o lies in a range and has one residue.
  shift = low - np.arange(kernel, dtype=np.int64) * right_dilation
  common = math.gcd(stride, left_dilation)
  period = left_dilation // common
  first = shift // common % period * pow(stride // common, -1, period) % period
  start = np.maximum(-(-shift // stride), 0)
  stop = np.minimum((shift + size * left_dilation - 1) // stride, out - 1)
  start += (first - start) % period
  found = np.where(stop >= start, (stop - start) // period + 1, 0)
  return int(np.sum(np.where(shift % common == 0, found, 0)))
