"""What a hand-written kernel does, for which the compiler estimates nothing: FLOPs and bytes."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

# Matrix products of [block_q, head_dim] by [block_kv, head_dim] in size, for a pair of blocks.
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


class Kernel(NamedTuple):
  """All calls of one kernel in a step on one device.

  Attributes:
    name: of the instruction.
    calls: in a step.
    flops: of the matrix products in one call; None for a kernel that is not known here.
    bytes: of one call's operands and results.
  """

  name: str
  calls: int
  flops: int | None
  bytes: int

  def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
    """The least that its calls take on a chip."""
    return self.calls * max((self.flops or 0) / flops_per_second, self.bytes / bytes_per_second)


def kernel_flops(name: str, query: tuple[int, ...], rest: str) -> int | None:
  """FLOPs of a call of splash attention; None for another kernel.

  Blocks above the diagonal are skipped, those on it are computed whole. Windows are not known here:
  with them this is too much.

  Args:
    name: of the instruction.
    query: its shape, [..., heads, seq, head_dim].
    rest: the instruction's attributes, as written.
  """
  found = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", name)
  if not found:
    return None
  suffix = "" if found[1] == "fwd" else f"_{found[1]}"
  blocks = [re.search(rf'block_{of}{suffix}\\*": ?(\d+)', rest) for of in ("q", "kv")]
  if not all(blocks):
    return None
  block_q, block_kv = (int(block[1]) for block in blocks if block)
  *others, seq, head_dim = query
  pairs = sum(
    block_q * min(seq, -(-(first + block_q) // block_kv) * block_kv)
    for first in range(0, seq, block_q)
  )
  return _SPLASH_PRODUCTS[found[1]] * 2 * math.prod(others) * pairs * head_dim
