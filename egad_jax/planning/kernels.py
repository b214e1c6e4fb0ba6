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


def kernel_flops(name: str, operands: list[tuple[int, ...]], rest: str) -> int | None:
  """FLOPs of the matrix products of a call; None for a kernel that is not known here.

  Args:
    name: of the instruction.
    operands: shapes of those that are floating point.
    rest: the instruction's attributes, as written.
  """
  if found := re.match(r"splash_m[hq]a_(fwd|dq|dkv)", name):
    return _splash_flops(found[1], operands[0], rest)
  if name.startswith(("teacher_logits", "student_logits")):
    (tokens, dim), (vocab, _) = operands[:2]
    return 2 * tokens * dim * vocab
  if name.startswith("logits_gradient"):
    (tokens, vocab), _, (_, dim) = operands[:3]
    return 2 * 2 * tokens * dim * vocab
  return None


def _splash_flops(pass_: str, query: tuple[int, ...], rest: str) -> int | None:
  """FLOPs of splash attention, from its query [..., heads, seq, head_dim].

  Blocks above the diagonal are skipped, those on it are computed whole. Windows are not known here:
  with them this is too much.
  """
  suffix = "" if pass_ == "fwd" else f"_{pass_}"
  blocks = [re.search(rf'block_{of}{suffix}\\*": ?(\d+)', rest) for of in ("q", "kv")]
  if not all(blocks):
    return None
  block_q, block_kv = (int(block[1]) for block in blocks if block)
  *others, seq, head_dim = query
  pairs = sum(
    block_q * min(seq, -(-(first + block_q) // block_kv) * block_kv)
    for first in range(0, seq, block_q)
  )
  return _SPLASH_PRODUCTS[pass_] * 2 * math.prod(others) * pairs * head_dim
