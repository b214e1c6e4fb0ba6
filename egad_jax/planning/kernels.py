"""FLOPs and bytes of hand-written kernels, for which the compiler gives no estimate."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

# Matrix products of each pass for a pair of blocks, each of the size of [block_q, head_dim] times
# [head_dim, block_kv].
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


class Kernel(NamedTuple):
  """One kernel's calls in a step on one device.

  Attributes:
    name: name of the instruction that calls it.
    calls: number of calls in a step.
    flops: FLOPs of the matrix products in one call; None for a kernel that is not known here.
    bytes: bytes of one call's operands and results.
  """

  name: str
  calls: int
  flops: int | None
  bytes: int

  def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
    """The least seconds that all its calls take on a device with this peak and bandwidth."""
    return self.calls * max((self.flops or 0) / flops_per_second, self.bytes / bytes_per_second)


def kernel_flops(name: str, operands: list[tuple[int, ...]], rest: str) -> int | None:
  """FLOPs of the matrix products in one call; None for a kernel that is not known here.

  Args:
    name: name of the instruction that calls the kernel.
    operands: shapes of the floating-point operands, in order.
    rest: the instruction's attributes, as the program's text has them.
  """
  if found := re.match(r"splash_m[hq]a_(fwd|dq|dkv)", name):
    return _splash_flops(found[1], operands[0], rest)
  if name.startswith(("teacher_logits", "student_logits")):
    (tokens, dim), (vocab, _) = operands[:2]
    return 2 * tokens * dim * vocab
  if name.startswith("logits_gradient"):
    (tokens, vocab), _, (_, dim) = operands[:3]
    return 2 * 2 * tokens * dim * vocab
  if name.startswith("ragged-dot-none"):
    # The compiler's kernel of a grouped product. Rows of no group, which are those of experts on
    # other devices, are counted although it skips them.
    (rows, _), (_, *sizes) = operands[:2]
    return 2 * rows * math.prod(sizes)
  return None


def _splash_flops(pass_: str, query: tuple[int, ...], rest: str) -> int | None:
  """FLOPs of one pass of splash attention, from the shape of its query [..., heads, seq, head_dim].

  Blocks above the diagonal are skipped and those on it are computed whole. Attention windows are
  not known here, so the result is too large for a model with windows.
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
