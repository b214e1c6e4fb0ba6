"""Models the time of the head's TPU kernels from their static schedules, on any CPU.

  python -m benchmarks.kernels --chips=v5e,v5p,v6e

The compiler estimates nothing for a hand-written kernel, but it writes down the bundles of
instructions that it made, one a cycle when nothing stalls. A grid step then takes the longest of
three: its bundles, loops times their trips; its matrix products at the chip's peak; its bytes at
the memory's bandwidth. What runs in one step of many (zeroing sums, the last copy) is counted in
each, waiting for the first block and for anything else is not.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from benchmarks.markdown import table
from egad_jax.chips import CHIPS, topology

_TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


class Schedule(NamedTuple):
  """One kernel on one kind of chip.

  Attributes:
    name: of the kernel.
    steps: of its grid, on one core.
    bundles: of a step.
    matrix_cycles: of a step, its products at the chip's peak.
    memory_cycles: of a step, its blocks at the memory's bandwidth.
    flops: of a call, on all cores.
  """

  name: str
  steps: int
  bundles: float
  matrix_cycles: float
  memory_cycles: float
  flops: int

  @property
  def cycles(self) -> float:
    """Modelled cycles of a call."""
    return self.steps * max(self.bundles, self.matrix_cycles, self.memory_cycles)


def schedules(chip: str, *, chunk: int, vocab: int, student_dim: int, teacher_dim: int):
  """The schedules of the three kernels, from a process of its own.

  libtpu reads where to write its schedules when it is loaded, and then writes those of everything.
  """
  sizes = {"chunk": chunk, "vocabularies": vocab}
  sizes |= {"student_dim": student_dim, "teacher_dim": teacher_dim}
  with tempfile.TemporaryDirectory(prefix="egad_jax_kernels_") as dump:
    command = [sys.executable, "-m", "benchmarks.kernels", f"--chips={chip}", f"--dump={dump}"]
    command += [f"--{name}={value}" for name, value in sizes.items()]
    arguments = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
    environment = os.environ | {"LIBTPU_INIT_ARGS": arguments}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
      raise RuntimeError(f"the kernels do not compile for {chip}:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
  return [Schedule(**line) for line in lines]


def scheduled_bundles(text: str, trips: int) -> int:
  """Bundles of one grid step, from the text of a kernel's final bundles.

  Args:
    text: a line for each bundle: address, `>` for each loop that it is in, instructions.
    trips: of the loop inside a grid step, if there is one.
  """
  total = 0
  for line in text.splitlines():
    found = re.match(r"\s*0x[0-9a-f]+\s*(?:[A-Z]+\s*)?:\s*(>*)\s*\{", line)
    if found and found[1]:  # What is outside the grid's loop runs once a call.
      total += trips ** (len(found[1]) - 1)
  return total


def _compile(
  chip: str, dump: pathlib.Path, *, chunk: int, vocab: int, student_dim: int, teacher_dim: int
) -> list[Schedule]:
  """Compiles the kernels for a chip and reads what libtpu dumps."""
  from egad_jax.planning.environment import prepare_environment

  prepare_environment(_TOPOLOGIES[chip])
  import jax
  import jax.numpy as jnp

  from egad_jax.head import tpu, tpu_kernels
  from egad_jax.planning import plan

  jax.config.update("jax_enable_compilation_cache", False)
  device = plan.devices_of(topology(_TOPOLOGIES[chip]))[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  kernels = tpu.kernels_of(device)
  assert kernels is not None
  tiles = tpu.chunk_tiles(kernels, chunk, student_dim, teacher_dim)
  if tiles is None:
    raise SystemExit(f"no tiles fit {chip} for chunks of {chunk} tokens.")

  def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  half = jnp.bfloat16
  common: dict[str, Any] = {"vocab": vocab, "soft_cap": None, "options": kernels.options}
  logits, numbers = array(chunk, vocab), array(chunk, tpu.LANES)
  student = array(vocab, student_dim, dtype=half)
  gradient: dict[str, Any] = {
    "cores": kernels.cores,
    "has_cross_entropy": True,
    "tile": tiles.gradient,
  }
  calls = {
    "teacher_logits": (
      functools.partial(tpu_kernels.teacher_logits, tile=tiles.teacher, **common),
      (array(chunk, teacher_dim, dtype=half), array(vocab, teacher_dim, dtype=half)),
      (),
    ),
    "student_logits": (
      functools.partial(tpu_kernels.student_logits, tile=tiles.student, **common),
      (array(chunk, student_dim, dtype=half), student, logits, numbers),
      (),
    ),
    "logits_gradient": (
      functools.partial(tpu_kernels.logits_gradient, **gradient, **common),
      (
        logits,
        logits,
        array(chunk, student_dim, dtype=half),
        student,
        numbers,
        array(vocab, student_dim),
      ),
      (5,),
    ),
  }
  facts = CHIPS[chip].device
  found = []
  for name, (function, arguments, donated) in calls.items():
    with plan.compiling_for(device):
      lowered = jax.jit(function, donate_argnums=donated).lower(*arguments)
    lowered.compile()
    (path,) = dump.glob(f"*-{name}*-final_bundles.txt".replace("*-final", "*[0-9]-final"))
    tile = getattr(tiles, name.split("_")[0] if name != "logits_gradient" else "gradient")
    rows, width = tile[:2]
    dim = teacher_dim if name == "teacher_logits" else student_dim
    trips = rows // tile[2] if len(tile) == 3 else 1
    products = 2 if name == "logits_gradient" else 1
    # float32 blocks of logits that move, weights, and the unembedding's gradient both ways. What
    # stays while its block's index does (hidden states, sums) hardly moves.
    blocks = {"teacher_logits": 1, "student_logits": 2, "logits_gradient": 2}[name]
    moved = 4 * rows * width * blocks
    per_chunk = 2 * width * dim + (2 * 4 * width * dim if name == "logits_gradient" else 0)
    # The gradient's weights stay for all blocks of tokens.
    moved += per_chunk * (rows / chunk if name == "logits_gradient" else 1)
    per_second = facts.hbm_bytes_per_second / kernels.cores
    peak = facts.flops_per_second / facts.hertz / kernels.cores
    steps = (chunk // rows) * -(-vocab // width)
    found.append(
      Schedule(
        name,
        -(-steps // kernels.cores),
        scheduled_bundles(path.read_text(), trips),
        products * 2 * rows * width * dim / peak,
        moved / per_second * facts.hertz,
        products * 2 * chunk * vocab * dim,
      )
    )
  return found


def main() -> None:
  """Prints the table, or within: compiles."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
  parser.add_argument("--chips", default="v5e,v5p,v6e", help="kinds, with commas")
  parser.add_argument("--vocabularies", default="151936", help="entries, with commas")
  parser.add_argument("--chunk", type=int, default=1024, help="tokens of a chunk")
  parser.add_argument("--student_dim", type=int, default=1024)
  parser.add_argument("--teacher_dim", type=int, default=4096)
  parser.add_argument("--dump", help=argparse.SUPPRESS)  # For the process within.
  options = parser.parse_args()
  chips, vocabularies = options.chips.split(","), map(int, options.vocabularies.split(","))
  sizes = {name: getattr(options, name) for name in ("chunk", "student_dim", "teacher_dim")}
  if options.dump:
    for schedule in _compile(
      chips[0], pathlib.Path(options.dump), vocab=next(vocabularies), **sizes
    ):
      print(json.dumps(schedule._asdict()))
    return
  header = ("chip", "vocabulary", "kernel", "steps", "bundles", "matrix", "memory")
  rows = []
  for vocab in vocabularies:
    for chip in chips:
      per_cycle = CHIPS[chip].device.flops_per_second / CHIPS[chip].device.hertz
      least = 2 * sizes["chunk"] * vocab * (sizes["teacher_dim"] + 3 * sizes["student_dim"])
      found = schedules(chip, vocab=vocab, **sizes)
      for s in found:
        cycles = (f"{s.bundles:.0f}", f"{s.matrix_cycles:.0f}", f"{s.memory_cycles:.0f}")
        over = (f"{s.cycles * per_cycle / s.flops:.2f}", f"{s.cycles * per_cycle / least:.3f}")
        rows.append((chip, f"{vocab:,}", s.name, str(s.steps), *cycles, *over))
      total = sum(s.cycles for s in found) * per_cycle / least
      rows.append((chip, f"{vocab:,}", "all three", "", "", "", "", "", f"{total:.3f}"))
  print(table((*header, "over its products", "over all products"), rows))


if __name__ == "__main__":
  main()
