"""Heads compiled for a TPU that need not be there, by the compiler's own account."""

from __future__ import annotations

import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.head_inputs import Sizes, context
from benchmarks.heads import Contender, Inputs, Settings, with_gradients
from benchmarks.kernels import schedules
from benchmarks.markdown import table
from egad_jax.chips import CHIPS, topology
from egad_jax.head.tpu import kernels_of
from egad_jax.planning import plan
from egad_jax.planning.program import Program

# The smallest slice of each; one device of it is used.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
_HEADER = (
  "chip",
  "tokens",
  "vocabulary",
  "head",
  "cycles / floor",
  "temporaries, GiB",
  "FLOPs / minimum",
)


class Modelled(NamedTuple):
  """What the compiler says of one head on one device.

  Attributes:
    cycles: estimated, loops times their trips, over those of the four products at the peak.
    temporaries: bytes.
    flops: of matrix products, over the least.
    unknown_kernels: calls of hand-written kernels of unknown FLOPs, counted by their bytes alone.
  """

  cycles: float
  temporaries: int
  flops: float
  unknown_kernels: int


def abstract_inputs(sizes: Sizes, device: Any) -> Inputs:
  """Shapes of bfloat16 inputs on a device."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  shape = lambda dtype, *dims: jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)
  tokens, vocab, teacher_dim, student_dim = sizes
  return Inputs(
    shape(jnp.bfloat16, tokens, student_dim),
    shape(jnp.bfloat16, vocab, student_dim),
    shape(jnp.bfloat16, tokens, teacher_dim),
    shape(jnp.bfloat16, vocab, teacher_dim),
    shape(jnp.int32, tokens),
    shape(jnp.bool_, tokens),
    jax.tree.map(lambda x: shape(x.dtype, *x.shape), jax.eval_shape(lambda: context(vocab))),
  )


def model(
  contender: Contender, chip_name: str, sizes: Sizes, settings: Settings
) -> Modelled | None:
  """Compiles a head for one device of a chip; None if it does not fit its memory."""
  facts = CHIPS[chip_name].device
  device = plan.devices_of(topology(TOPOLOGIES[chip_name]))[0]
  settings = settings._replace(kernels=kernels_of(device))
  # A cached executable leaves no dump.
  jax.config.update("jax_enable_compilation_cache", False)
  with plan.compiling_for(device):
    lowered = jax.jit(with_gradients(contender, settings)).lower(abstract_inputs(sizes, device))
  with tempfile.TemporaryDirectory(prefix="egad_jax_benchmark_") as directory:
    options: dict[str, str | bool] = {"xla_dump_to": directory, "xla_dump_hlo_as_text": True}
    try:
      compiled = lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" in str(error) and "hbm" in str(error).lower():
        return None
      raise
    (path,) = pathlib.Path(directory).glob("*.after_codegen.txt")
    trips = contender.trips(sizes.tokens, sizes.vocab, settings)
    program = Program(path.read_text(), traced_trips=trips)
    cycles = program.cycles + _kernel_cycles(program, chip_name, sizes)
  stats: Any = compiled.memory_analysis()
  kernels = program.kernels
  flops = program.matmul_flops() + sum(k.calls * (k.flops or 0) for k in kernels)
  return Modelled(
    cycles=cycles / facts.hertz / (sizes.minimum_flops / facts.flops_per_second),
    temporaries=stats.temp_size_in_bytes,
    flops=flops / sizes.minimum_flops,
    unknown_kernels=sum(k.calls for k in kernels if k.flops is None),
  )


@functools.cache
def _schedules(chip: str, chunk: int, sizes: Sizes) -> dict[str, float]:
  """Cycles of a call of each of the head's kernels."""
  _, vocab, teacher_dim, student_dim = sizes
  found = schedules(
    chip, chunk=chunk, vocab=vocab, student_dim=student_dim, teacher_dim=teacher_dim
  )
  return {schedule.name: schedule.cycles for schedule in found}


def _kernel_cycles(program: Program, chip: str, sizes: Sizes) -> float:
  """Cycles of all kernels: ours by their static schedules, others by their bytes and FLOPs."""
  facts, total = CHIPS[chip].device, 0.0
  for kernel in program.kernels:
    name = kernel.name.split(".")[0]
    if name in ("teacher_logits", "student_logits", "logits_gradient"):
      # The last chunk may be filled up: all are whole pairs of vectors, `kernel_chunk_size`.
      chunk = -(-sizes.tokens // (kernel.calls * 256)) * 256
      total += kernel.calls * _schedules(chip, chunk, sizes)[name]
    else:
      seconds = kernel.seconds(facts.flops_per_second, facts.hbm_bytes_per_second)
      total += seconds * facts.hertz
  return total


def modelled(
  contenders: Mapping[str, Contender],
  chips: Sequence[str],
  problems: Sequence[Sizes],
  settings: Settings,
  report: Callable[[str], None],
) -> str:
  """A markdown table of every contender on every chip for every problem.

  Args:
    contenders: by key.
    chips: keys of `TOPOLOGIES`.
    problems: sizes.
    settings: of the loss.
    report: takes a line of progress.
  """
  rows, unknown = [], False
  for chip in chips:
    for sizes in problems:
      for contender in contenders.values():
        started = time.monotonic()
        found = model(contender, chip, sizes, settings)
        case = (chip, f"{sizes.tokens:,}", f"{sizes.vocab:,}", contender.title)
        if found is None:
          cells = ("does not fit", "—", "—")
        else:
          star = "*" if found.unknown_kernels else ""
          unknown = unknown or bool(star)
          cells = (
            f"{found.cycles:.2f}{star}",
            f"{found.temporaries / 2**30:.2f}",
            f"{found.flops:.3f}{star}",
          )
        rows.append((*case, *cells))
        report(f"{', '.join((*case, *cells))} ({time.monotonic() - started:.0f} s)")
  note = "\n\n\\* has kernels of unknown FLOPs; a real run takes longer." if unknown else ""
  return table(_HEADER, rows) + note
