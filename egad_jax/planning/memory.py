"""The memory of a program by use, from the compiler's own assignment of buffers."""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

from egad_jax.planning.program import Program, shape_bytes

TREES = ("teacher", "student", "optimizer", "other")


class Buffer(NamedTuple):
  """One array in memory.

  Attributes:
    bytes: its bytes on a device, padding included.
    shape: its dtype and shape, such as "bf16[8,128]".
    source: the line of this package that makes it, or what else is known; see `Program.source`.
  """

  bytes: int
  shape: str
  source: str


class Memory(NamedTuple):
  """The memory of one device that a program needs.

  Attributes:
    arguments: bytes of the program's arguments, by tree: one of `TREES`.
    outputs: bytes of the outputs that do not reuse an argument's memory.
    temporaries: bytes that are in use only during a step.
    largest: the largest buffers, largest first; they need not exist at the same time.
  """

  arguments: dict[str, int]
  outputs: int
  temporaries: int
  largest: list[Buffer]

  @property
  def total(self) -> int:
    """Bytes of arguments, outputs and temporaries together."""
    return sum(self.arguments.values()) + self.outputs + self.temporaries


def _tree(path: str) -> str:
  for prefix, tree in (
    ("frozen.teacher", "teacher"),
    ("state.trainable['student']", "student"),
    ("state.opt_state", "optimizer"),
  ):
    if path.startswith(prefix):
      return tree
  return "other"


def read_memory(dump: pathlib.Path, program: Program, *, count: int = 10) -> Memory:
  """Reads the buffer assignment that the compiler dumped, whether or not the program fits.

  Args:
    dump: the directory that the compiler dumped to.
    program: the parsed program of the same compilation.
    count: number of the largest buffers to keep.
  """
  (path,) = dump.glob("*train_step*.after_optimizations-buffer-assignment.txt")
  arguments = dict.fromkeys(TREES, 0)
  outputs = temporaries = 0
  candidates: dict[tuple[int, int], Buffer] = {}
  group, tree = 0, ""
  for line in path.read_text().splitlines():
    if allocation := re.match(r"allocation (\d+): size (\d+), (.*)", line):
      group, size, about = int(allocation[1]), int(allocation[2]), allocation[3]
      tree = "" if "parameter" in about else "temporary"
      if "color" in about or "thread-local" in about or "constant" in about:
        tree = "elsewhere"  # In memory on the chip, or too small to matter.
      elif tree and "preallocated-temp" in about:
        temporaries += size
      elif tree:
        outputs += size
      pending = size
    elif value := re.match(
      r" value: <\d+ (\S+?)(?:\{[\d,]*\})?(?: \(phi\))? @0> \(size=(\d+),offset=(\d+)\): (.*)", line
    ):
      name, size, offset, shape = value[1], int(value[2]), int(value[3]), value[4]
      source = program.source(name)
      if not tree:  # The first value of a parameter's allocation is the parameter.
        tree = _tree(source)
        arguments[tree] += pending
      if tree != "elsewhere" and shape_bytes(shape):
        key = (group, offset)
        if key not in candidates or size > candidates[key].bytes:
          candidates[key] = Buffer(size, shape.split("{")[0], source)
  largest = sorted(candidates.values(), key=lambda buffer: -buffer.bytes)[:count]
  return Memory(arguments, outputs, temporaries, largest)
