"""Reads a compiled TPU program's text: its matmuls, cycles, collectives and source lines.

XLA's own cost analysis counts the body of a loop once and needs a program that fits. The text has
the trip counts, and the compiler writes it even for a program that does not fit.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from egad_jax.planning.convolution import convolution_flops
from egad_jax.planning.kernels import Kernel, kernel_flops

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1}
# From here on, cycles mean that there is no estimate: libtpu 0.0.50 writes the largest int64 for
# scatters on TPU7x's SparseCores.
_NO_ESTIMATE = 2**62
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Op(NamedTuple):
  """One instruction of a program.

  Attributes:
    name: its name, unique in the program.
    shape: dtype, shape and layout of its result, as in the text.
    kind: its opcode.
    operands: names of the instructions whose results it reads.
    rest: its attributes, metadata and backend configuration, as in the text.
    text: its operands, as in the text.
  """

  name: str
  shape: str
  kind: str
  operands: tuple[str, ...]
  rest: str
  text: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """Communication of one kind in a step, on one device.

  Attributes:
    kind: the collective's opcode, such as "all-gather".
    count: number of collectives of this kind in a step.
    bytes: bytes of their operands or results, whichever are more, in a step.
  """

  kind: str
  count: int
  bytes: int


def dimensions(shape: str) -> tuple[int, ...]:
  """The sizes of the first array in a shape's text.

  >>> dimensions("bf16[8,128]{1,0:T(8,128)}")
  (8, 128)
  """
  return _sizes(re.search(r"\[([\d,]*)\]", shape)[1])  # type: ignore[index]


def _sizes(text: str) -> tuple[int, ...]:
  return tuple(int(size) for size in text.split(",") if size)


def shape_bytes(shape: str) -> int:
  """The bytes of all arrays in a shape's text, without padding.

  >>> shape_bytes("(f32[2,3]{1,0}, bf16[4]{0})")
  32
  """
  arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
  return int(sum(_BYTES.get(dtype, 0) * math.prod(_sizes(sizes)) for dtype, sizes in arrays))


def _balanced(text: str) -> int:
  """The index just after the parenthesis that closes the one that `text` starts with."""
  depth = 0
  for i, c in enumerate(text):
    depth += (c == "(") - (c == ")")
    if not depth:
      return i + 1
  raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _elements(shape: str) -> list[str]:
  """The texts of the shapes inside a tuple's shape.

  >>> _elements("(s32[]{:T(128)}, (f32[2,3]{1,0}, pred[]), /*index=2*/u8[4])")
  ['s32[]{:T(128)}', '(f32[2,3]{1,0}, pred[])', 'u8[4]']
  """
  inside = re.sub(r"/\*.*?\*/", "", shape[1:-1])
  parts, depth = [""], 0
  for c in inside:
    depth += (c in "([{") - (c in ")]}")
    if c == "," and not depth:
      parts.append("")
    else:
      parts[-1] += c
  return [part.strip() for part in parts]


def _place(op: Op) -> int | None:
  """The index of the tuple element that an instruction takes; None for any other instruction."""
  found = re.search(r"\bindex=(\d+)", op.rest) if op.kind == "get-tuple-element" else None
  return int(found[1]) if found else None


def _constant(op: Op) -> int | None:
  return int(op.text) if op.kind == "constant" and op.text.isdigit() else None


def _parse_op(line: str) -> Op | None:
  found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
  if not found:
    return None
  rest = line[found.end() :]
  end = _balanced(rest) if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:end], rest[end:].lstrip()
  kind, paren, _ = rest.partition("(")
  if not paren or not re.fullmatch(r"[\w\-]+", kind):
    return None
  rest = rest[len(kind) :]
  end = _balanced(rest)
  operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)*)", rest[:end]))
  return Op(found[1], shape, kind, operands, rest[end:], rest[1 : end - 1])


class Program:
  """A compiled program, parsed from its text.

  Attributes:
    computations: the instructions of each computation, by its name.
    ops: all instructions by name.
    times: how often a step runs each computation, by its name; all branches of a conditional count.
    traced_loops: number of loops whose trip count is not in the text.
  """

  def __init__(self, text: str, *, traced_trips: int = 1, idle_scopes: tuple[str, ...] = ()):
    """Parses a program.

    Args:
      text: text of the optimized and scheduled module.
      traced_trips: trip count to assume for a loop whose trip count is not in the text.
      idle_scopes: names of scopes (`jax.named_scope`) whose loops make no trip if their trip count
        is not in the text.
    """
    self._idle_scopes = idle_scopes
    # A kernel's metadata spans several lines; instructions are parsed line by line.
    text = re.sub(r"kernel_metadata=\{\n(.*)\n\}", r"kernel_metadata={\1}", text)
    self._text = text
    self.computations: dict[str, list[Op]] = {}
    entry, current = "", ""
    for line in text.splitlines():
      head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\) -> .*\{$", line)
      if head:
        current = head[2]
        entry = current if head[1] else entry
        self.computations[current] = []
      elif current and (op := _parse_op(line)):
        self.computations[current].append(op)
    self.ops = {op.name: op for ops in self.computations.values() for op in ops}
    for op in list(self.ops.values()):
      for name in op.operands:
        self._add_element(name)
    self.traced_loops = 0
    self.times: dict[str, int] = collections.Counter()
    self._scheduled: set[str] = set()
    self._visit(entry, 1, True, traced_trips)

  def _add_element(self, name: str) -> None:
    """Adds the get-tuple-element that an operand such as `%tuple#2`, of newer compilers, means."""
    whole, mark, index = name.rpartition("#")
    if not mark or name in self.ops:
      return
    self._add_element(whole)
    shape = _elements(self.ops[whole].shape)[int(index)]
    self.ops[name] = Op(name, shape, "get-tuple-element", (whole,), f", index={index}", "")

  def _visit(self, name: str, times: int, scheduled: bool, traced_trips: int) -> None:
    """Counts the runs of a computation and those it calls.

    Args:
      name: name of the computation.
      times: how often a step runs it.
      scheduled: whether its instructions are scheduled one by one; those inside a fusion are not.
      traced_trips: as for `__init__`.
    """
    self.times[name] += times
    if scheduled:
      self._scheduled.add(name)
    for op in self.computations[name]:
      trips = 1
      if op.kind == "while":
        known = self._trips(op)
        if known is None and self._is_idle(op):
          known = 0
        self.traced_loops += known is None
        trips = traced_trips if known is None else known
      for called in self._called(op):
        inside = scheduled and op.kind != "fusion"
        self._visit(called, times * trips, inside, traced_trips)

  def _is_idle(self, loop: Op) -> bool:
    path = re.search(r'op_name="([^"]*)"', loop.rest)
    return path is not None and any(re.search(rf"\b{s}\b", path[1]) for s in self._idle_scopes)

  def _called(self, op: Op) -> list[str]:
    key = {"while": "body", "call": "to_apply", "fusion": "calls", "async-start": "calls"}
    if op.kind == "conditional":
      branches = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
      if branches:
        return re.findall(r"%([\w.\-]+)", branches[1])
      return re.findall(r"(?:true|false)_computation=%([\w.\-]+)", op.rest)
    found = op.kind in key and re.search(rf"\b{key[op.kind]}=%([\w.\-]+)", op.rest)
    return [found[1]] if found else []

  def _trips(self, loop: Op) -> int | None:
    """The trip count of a loop; None if its counter or bound cannot be told from the text."""
    condition = re.search(r"condition=%([\w.\-]+)", loop.rest)[1]  # type: ignore[index]
    comparisons = [op for op in self.computations[condition] if op.kind == "compare"]
    if len(comparisons) != 1 or len(comparisons[0].operands) != 2:
      return None
    counter, bound = (self._origin(name) for name in comparisons[0].operands)
    place = _place(counter)
    values = self.ops[loop.operands[0]]
    if "direction=LT" not in comparisons[0].rest or place is None or values.kind != "tuple":
      return None
    if (index := _place(bound)) is not None:  # The bound is one of the loop's values.
      bound = self._origin(values.operands[index])
    first, last = _constant(self._origin(values.operands[place])), _constant(bound)
    step = self._step(loop, place)
    if first is None or last is None or step is None:
      return None
    return max(0, -(-(last - first) // step))

  def _step(self, loop: Op, place: int) -> int | None:
    """By how much the body raises its counter, more than 1 if XLA unrolled it; None if unknown."""
    (body,) = self._called(loop)
    result = self.computations[body][-1]
    if result.kind != "tuple":
      return None
    op, step = self._origin(result.operands[place]), 0
    while op.kind == "add":
      sides = [self._origin(name) for name in op.operands]
      known = [_constant(side) for side in sides]
      if len(sides) != 2 or (known[0] is None) == (known[1] is None):
        return None
      step += known[0] if known[0] is not None else known[1]  # type: ignore[operator]
      op = sides[1] if known[0] is not None else sides[0]
    return step if _place(op) == place and step > 0 else None

  def _origin(self, name: str) -> Op:
    """The instruction that makes a value, behind any copies and bitcasts of it."""
    op = self.ops[name]
    while op.kind in ("copy", "bitcast", "copy-start", "copy-done"):
      op = self.ops[op.operands[0]]
    return op

  def _everything(self) -> Iterator[tuple[str, Op, int]]:
    for name, ops in self.computations.items():
      if times := self.times.get(name, 0):
        for op in ops:
          yield name, op, times

  def matmul_flops(self, where: Callable[[Op], bool] = lambda op: True) -> int:
    """FLOPs of all matrix products of a step on one device, those of loops times their trips.

    They are counted as in XLA's cost analysis: two for each multiply-add with real elements. The
    products inside hand-written kernels are not included; see `kernels`.

    Args:
      where: which instructions to count; all by default.
    """
    return sum(times * self._flops(op) for _, op, times in self._everything() if where(op))

  def _flops(self, op: Op) -> int:
    if op.kind == "dot":
      left = dimensions(self.ops[op.operands[0]].shape)
      contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)
      depth = math.prod(left[i] for i in _sizes(contracted[1])) if contracted else 1
      return 2 * math.prod(dimensions(op.shape)) * depth
    if op.kind != "convolution":
      return 0
    return convolution_flops(
      dimensions(self.ops[op.operands[0]].shape),
      dimensions(self.ops[op.operands[1]].shape),
      dimensions(op.shape),
      op.rest,
    )

  @functools.cached_property
  def cycles(self) -> int:
    """The compiler's estimated cycles of a step on one device, loops times their trips."""
    return sum(times * cycles for cycles, times in self._estimates if cycles < _NO_ESTIMATE)

  @property
  def without_estimate(self) -> int:
    """How many runs of instructions in a step the compiler has no estimate for."""
    return sum(times for cycles, times in self._estimates if cycles >= _NO_ESTIMATE)

  @functools.cached_property
  def _estimates(self) -> list[tuple[int, int]]:
    """(estimated cycles, runs in a step) of each scheduled instruction."""
    return [
      (int(found[1]), times)
      for name, op, times in self._everything()
      if name in self._scheduled and (found := re.search(r'"estimated_cycles":"(\d+)"', op.rest))
    ]

  @functools.cached_property
  def kernels(self) -> list[Kernel]:
    """The hand-written kernels of a step, for which the compiler gives no estimate."""
    found = []
    for _, op, times in self._everything():
      if 'custom_call_target="tpu_custom' in op.rest:
        operands = [self.ops[name].shape for name in op.operands]
        arrays = [dimensions(shape) for shape in operands if re.match(r"b?f\d", shape)]
        flops = kernel_flops(op.name, arrays, op.rest) if arrays else None
        size = shape_bytes(op.shape) + sum(map(shape_bytes, operands))
        found.append(Kernel(op.name, times, flops, size))
    return found

  @functools.cached_property
  def collectives(self) -> list[Collective]:
    """Communication of a step on one device, by kind."""
    count: dict[str, int] = collections.Counter()
    size: dict[str, int] = collections.Counter()
    seen = set()
    for name, op, times in self._everything():
      kind = op.kind.removesuffix("-start")
      if kind not in _COLLECTIVES:
        continue
      # A collective may be cut into parts that fusions overlap with; they share its channel.
      channel = re.search(r"channel_id=(\d+)", op.rest)
      identity = channel[1] if channel else op.name
      if identity in seen:
        continue
      seen.add(identity)
      if name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
      operands = sum(shape_bytes(self.ops[operand].shape) for operand in op.operands)
      result = shape_bytes(op.shape) - (operands if op.kind.endswith("-start") else 0)
      count[kind] += times
      size[kind] += times * max(operands, result)
    return [Collective(kind, count[kind], size[kind]) for kind in sorted(count)]

  @functools.cached_property
  def _frames(self) -> dict[int, tuple[str, int, int]]:
    """The (file, line, parent frame) of each stack frame, by its number; parent 0 for none."""

    def table(title: str) -> list[str]:
      found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", self._text, re.MULTILINE)
      return found[1].splitlines() if found else []

    files = {
      int(i): path.strip('"') for i, path in (row.split(" ", 1) for row in table("FileNames"))
    }
    numbers = lambda row: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", row)}
    places = {int(row.split(" ")[0]): numbers(row) for row in table("FileLocations")}
    frames = {}
    for row in table("StackFrames"):
      frame = numbers(row)
      place = places[frame["file_location_id"]]
      where = (files[place["file_name_id"]], place["line"])
      # The table's parent ids are greater by 1, so that 1 means no parent.
      frames[int(row.split(" ")[0])] = (*where, frame.get("parent_frame_id", 1) - 1)
    return frames

  def source(self, name: str) -> str:
    """The line of this package that an instruction comes from, as "egad_jax/FILE:LINE".

    Otherwise it is the instruction's op_name in the traced program, or its opcode; "" for an
    unknown name.
    """
    op = self.ops.get(name)
    if op is None:
      return ""
    path = re.search(r'op_name="([^"]*)"', op.rest)
    frame = re.search(r"stack_frame_id=(\d+)", op.rest)
    number = int(frame[1]) if frame else 0
    while number in self._frames:
      file, line, number = self._frames[number]
      if "/egad_jax/" in file:
        return f"egad_jax/{file.rpartition('/egad_jax/')[2]}:{line}"
    return path[1].replace("\\'", "'") if path else op.kind
