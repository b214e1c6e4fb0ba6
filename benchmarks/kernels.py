"""Models the time of the head's TPU kernels from their static schedules, on any CPU.

  python -m benchmarks.kernels --chips=v5e,v5p,v6e

The compiler estimates nothing for a hand-written kernel, but it writes down the bundles of
instructions that it made, one a cycle when nothing stalls. A grid step then takes the longest of
three: its bundles, loops times their trips; its matrix products at the chip's peak; its bytes at
the memory's bandwidth. What runs in one step of many (zeroing sums, the last copy) is counted in
each, waiting for the first block and for anything else is not.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from absl import app, flags

from egad_jax.planning.chips import CHIPS

_TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

_CHIPS = flags.DEFINE_list("chips", ["v5e", "v5p", "v6e"], "Kinds of chips to compile for.")
_CHUNK = flags.DEFINE_integer("chunk", 1024, "Tokens of a chunk.")
_VOCABULARIES = flags.DEFINE_list("vocabularies", ["151936"], "Entries.")
_STUDENT_DIM = flags.DEFINE_integer("student_dim", 1024, "Width of the student.")
_TEACHER_DIM = flags.DEFINE_integer("teacher_dim", 4096, "Width of the teacher.")
_JSON = flags.DEFINE_bool("json", False, "Print one line of JSON for each kernel.")
_DUMP = flags.DEFINE_string("dump", None, "Where the compiler writes; for the process within.")


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
    """Of a call."""
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


def _compile(chip: str, vocab: int, dump: pathlib.Path) -> list[Schedule]:
  """Compiles the kernels for a chip and reads what libtpu dumps."""
  from egad_jax.planning.environment import prepare_environment

  prepare_environment(_TOPOLOGIES[chip])
  import jax
  import jax.numpy as jnp
  from jax.experimental import topologies

  from egad_jax.head import tpu, tpu_kernels

  jax.config.update("jax_enable_compilation_cache", False)
  device = topologies.get_topology_desc(platform="tpu", topology_name=_TOPOLOGIES[chip]).devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  chunk, student_dim, teacher_dim = _CHUNK.value, _STUDENT_DIM.value, _TEACHER_DIM.value
  kernels = tpu.kernels_of(device)
  assert kernels is not None
  tiles = tpu.chunk_tiles(kernels, chunk, student_dim, teacher_dim)
  if tiles is None:
    raise app.UsageError(f"no tiles fit {chip} for chunks of {chunk} tokens.")

  def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  half, common = jnp.bfloat16, {"vocab": vocab, "soft_cap": None, "options": kernels.options}
  logits, numbers = array(chunk, vocab), array(chunk, tpu.LANES)
  student = array(vocab, student_dim, dtype=half)
  gradient = {"cores": kernels.cores, "has_cross_entropy": True, "tile": tiles.gradient}
  calls = {
    "teacher_logits": (
      lambda *a: tpu_kernels.teacher_logits(*a, tile=tiles.teacher, **common),
      (array(chunk, teacher_dim, dtype=half), array(vocab, teacher_dim, dtype=half)),
      (),
    ),
    "student_logits": (
      lambda *a: tpu_kernels.student_logits(*a, tile=tiles.student, **common),
      (array(chunk, student_dim, dtype=half), student, logits, numbers),
      (),
    ),
    "logits_gradient": (
      lambda *a: tpu_kernels.logits_gradient(*a, **gradient, **common),
      (
        *(logits, logits, array(chunk, student_dim, dtype=half), student, numbers),
        array(vocab, student_dim),
      ),
      (5,),
    ),
  }
  facts = CHIPS[chip]
  found = []
  for name, (function, arguments, donated) in calls.items():
    jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
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


def main(argv: list[str]) -> None:
  """Prints the table, or within: compiles."""
  del argv
  sizes = {"chunk": _CHUNK.value, "student_dim": _STUDENT_DIM.value}
  sizes["teacher_dim"] = _TEACHER_DIM.value
  if _DUMP.value:
    (chip,), (vocab,) = _CHIPS.value, map(int, _VOCABULARIES.value)
    for schedule in _compile(chip, vocab, pathlib.Path(_DUMP.value)):
      print(json.dumps(schedule._asdict()))
    return
  print(
    "| chip | vocabulary | kernel | steps | bundles | matrix | memory | x its matmuls | x all |"
  )
  print("|---|---|---|---|---|---|---|---|---|")
  for chip in _CHIPS.value:
    for vocab in map(int, _VOCABULARIES.value):
      facts = CHIPS[chip]
      per_cycle = facts.flops_per_second / facts.hertz
      floor = 2 * _CHUNK.value * vocab * (_TEACHER_DIM.value + 3 * _STUDENT_DIM.value) / per_cycle
      total = 0.0
      for s in schedules(chip, vocab=vocab, **sizes):
        total += s.cycles
        print(
          f"| {chip} | {vocab} | {s.name} | {s.steps} | {s.bundles} | {s.matrix_cycles:.0f} "
          f"| {s.memory_cycles:.0f} | {s.cycles * per_cycle / s.flops:.2f} "
          f"| {s.cycles / floor:.3f} |"
        )
      print(f"| {chip} | {vocab} | all three | | | | | | {total / floor:.3f} |", flush=True)


if __name__ == "__main__":
  app.run(main)
