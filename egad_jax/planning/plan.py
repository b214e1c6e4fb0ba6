"""Compiles a train step for a topology that need not be there; reports its memory and time."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from egad_jax import sharding
from egad_jax.chips import CHIPS, Topology
from egad_jax.errors import InputError
from egad_jax.head.chunks import default_chunk_size
from egad_jax.head.long_spans import LONG_SPANS
from egad_jax.head.on_mesh import vocabulary_parts
from egad_jax.head.paired import blocks_of_chunk
from egad_jax.methods.method import SpanLoss
from egad_jax.planning.memory import Buffer, Memory, read_memory
from egad_jax.planning.program import Collective, Program
from egad_jax.training import utilization
from egad_jax.training.experiment import Experiment
from egad_jax.training.programs import lower_train_step


@dataclasses.dataclass(frozen=True)
class Plan:
  """A report on a run before it starts; `notes` and `kernels` are no keys of `--json`.

  The four times and rates are None if the step does not fit.

  Attributes:
    config: name of the config, or of the variant of a search.
    topology: name of the topology, such as v5e:16x16.
    devices: number of devices as jax counts them: one per chip, or two on TPU7x.
    chip: kind of chip, a key of `CHIPS`.
    fits: whether the step fits in a device's memory, by the compiler.
    hbm_bytes: memory of one device; the compiler reserves some of it, and it also holds the
      program's code.
    arguments_bytes: bytes of the step's arguments on one device, by tree; "other" is everything
      besides teacher, student and optimizer, such as the batch.
    temporaries_bytes: bytes on one device that are in use only during a step.
    total_bytes: bytes on one device of arguments, temporaries, and outputs that do not reuse an
      argument's memory.
    flops: FLOPs of the matrix products of one step, on all devices.
    flops_minimum: FLOPs that the two models need at least, on all devices; see `minimum_flops`.
    modelled_seconds: seconds of a step: the compiler's estimated cycles, and the least time that
      hand-written kernels can take, without communication.
    roofline_seconds: seconds of a step: `flops_minimum` at the peak, or the time to read all
      arguments once, whichever is longer.
    tokens_per_step: tokens of a batch, each taken to be a target.
    tokens_per_second: `tokens_per_step / modelled_seconds`.
    mfu: `flops_minimum` over the FLOPs that the devices could do in `modelled_seconds`, 0 to 1.
    collectives: communication of one device in one step, by kind.
    largest_buffers: the largest arrays on one device, which need not exist at the same time.
    compile_seconds: seconds of the compilation on this machine.
    notes: sentences for people that say what the figures include and leave out.
    kernels: calls of hand-written kernels in a step on one device, by the kernel's name.
  """

  config: str
  topology: str
  devices: int
  chip: str
  fits: bool
  hbm_bytes: int
  arguments_bytes: dict[str, int]
  temporaries_bytes: int
  total_bytes: int
  flops: int
  flops_minimum: int
  modelled_seconds: float | None
  roofline_seconds: float | None
  tokens_per_step: int
  tokens_per_second: float | None
  mfu: float | None
  collectives: list[Collective]
  largest_buffers: list[Buffer]
  compile_seconds: float
  notes: tuple[str, ...] = ()
  kernels: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def as_json(self) -> dict[str, Any]:
    """The plan as a dict of JSON values, without the notes and the kernels."""
    values = dataclasses.asdict(self)
    del values["notes"], values["kernels"]
    values["largest_buffers"] = [buffer._asdict() for buffer in self.largest_buffers]
    return values


def devices_of(slice_: Topology) -> Any:
  """The devices of a topology, as objects to make meshes of and compile for.

  Raises:
    InputError: libtpu cannot be loaded, or does not know the topology.
  """
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=slice_.name).devices
  except Exception as error:  # The class depends on what is wrong with libtpu.
    raise InputError(f"libtpu cannot make the topology {slice_.name}: {error}") from error
  if len(found) != slice_.devices:
    raise InputError(f"libtpu makes {len(found)} devices of {slice_.name}, not {slice_.devices}.")
  return found


def compiling_for(device: Any) -> contextlib.AbstractContextManager[Any]:
  """A context in which a program without a mesh is traced for a device that is not there.

  Pallas asks the mesh which chip its kernels are for; without a mesh it would ask the default
  device.
  """
  mesh = jax.sharding.Mesh(np.array([device]), ("device",))
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def minimum_flops(experiment: Experiment) -> int:
  """FLOPs of both models that no way of computing a step avoids; see `utilization`."""
  return sum(utilization.minimum_flops(experiment))


def head_chunks(experiment: Experiment, program: str) -> int:
  """Trips of the head's loop over chunks, on one device, if every token is a target.

  Args:
    experiment: the experiment whose train step was compiled.
    program: the text of the compiled program, which has the chunk size of the head's kernels, if
      it uses them.
  """
  vocab = experiment.tokenizers.student.vocab_size
  parts = vocabulary_parts(experiment.mesh, sharding.TENSOR_AXIS, vocab)
  micro_batch = experiment.optimization.batch_size // experiment.optimization.accumulation
  tokens = micro_batch * experiment.rows.seq_len // (experiment.mesh.size // parts)
  if isinstance(experiment.method.loss, SpanLoss):
    # Every device has whole rows, whole logits, and both vocabularies.
    tokens = micro_batch * experiment.rows.seq_len // sharding.batch_devices(experiment.mesh)
    vocab = max(vocab, experiment.tokenizers.teacher.vocab_size)
    return -(-tokens // math.prod(blocks_of_chunk(experiment.programs.chunk_size, tokens, vocab)))
  kernel = re.search(r"%logits_gradient[\w.]* = \(f32\[\d+,(\d+),\d+\]", program)
  if kernel:
    return -(-tokens // int(kernel[1]))
  chunk = experiment.programs.chunk_size or default_chunk_size(tokens, vocab // parts)
  return -(-tokens // min(chunk, tokens))


def plan(experiment: Experiment, slice_: Topology, *, config: str) -> Plan:
  """Compiles the train step of an experiment for the devices of a topology, and reports on it.

  Args:
    experiment: an experiment from `from_config.plan_run`, made for the topology's devices.
    slice_: the topology.
    config: name of the config in the plan.
  """
  device = CHIPS[slice_.chip].device
  minimum = minimum_flops(experiment)
  # The compiler dumps nothing for an executable from the cache.
  jax.config.update("jax_enable_compilation_cache", False)
  with tempfile.TemporaryDirectory(prefix="egad_jax_plan_") as directory:
    dump = pathlib.Path(directory)
    started = time.monotonic()
    compiled = _compile(experiment, dump)
    seconds = time.monotonic() - started
    # Only the last stage's text has estimates; a program that does not fit does not get there.
    stage = "after_optimizations" if compiled is None else "after_codegen"
    (path,) = dump.glob(f"*train_step*.{stage}.txt")
    text = path.read_text()
    trips = head_chunks(experiment, text)
    program = Program(text, traced_trips=trips, idle_scopes=(LONG_SPANS,))
    memory = read_memory(dump, program)
  if compiled is not None:
    stats = compiled.memory_analysis()
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = memory._replace(outputs=outputs, temporaries=stats.temp_size_in_bytes)
  tokens = experiment.optimization.batch_size * experiment.rows.seq_len
  peak = device.flops_per_second * slice_.devices
  bandwidth = device.hbm_bytes_per_second
  modelled = None
  if compiled is not None:
    kernels = (kernel.seconds(device.flops_per_second, bandwidth) for kernel in program.kernels)
    modelled = program.cycles / device.hertz + sum(kernels)
  in_kernels = sum(kernel.calls * (kernel.flops or 0) for kernel in program.kernels)
  return Plan(
    config=config,
    topology=slice_.name,
    devices=slice_.devices,
    chip=slice_.chip,
    fits=compiled is not None,
    hbm_bytes=device.hbm_bytes,
    arguments_bytes=memory.arguments,
    temporaries_bytes=memory.temporaries,
    total_bytes=memory.total,
    flops=(program.matmul_flops() + in_kernels) * slice_.devices,
    flops_minimum=minimum,
    modelled_seconds=modelled,
    roofline_seconds=max(minimum / peak, sum(memory.arguments.values()) / bandwidth)
    if modelled
    else None,
    tokens_per_step=tokens,
    tokens_per_second=tokens / modelled if modelled else None,
    mfu=minimum / peak / modelled if modelled else None,
    collectives=program.collectives,
    kernels=_calls(program),
    largest_buffers=memory.largest,
    compile_seconds=seconds,
    notes=(*_notes(program, slice_), students_note(experiment, memory, device.hbm_bytes)),
  )


def _compile(experiment: Experiment, dump: pathlib.Path) -> Any:
  """The executable, or None if it does not fit; in both cases the compiler writes to `dump`."""
  lowered = lower_train_step(experiment)
  try:
    return lowered.compile({"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True})
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" in str(error) and "hbm" in str(error).lower():
      return None
    raise


def _calls(program: Program) -> dict[str, int]:
  """Calls of each hand-written kernel, by its name without the number of the instruction."""
  calls: dict[str, int] = collections.Counter()
  for kernel in program.kernels:
    calls[re.sub(r"[.\d]+$", "", kernel.name)] += kernel.calls
  return dict(sorted(calls.items()))


def students_note(experiment: Experiment, memory: Memory, hbm_bytes: int) -> str:
  """Says how many students like the experiment's a sweep trains together on its devices.

  Args:
    experiment: the experiment of one student.
    memory: what its train step takes of a device.
    hbm_bytes: memory of a device.
  """
  teacher, arguments = experiment.abstract_frozen().teacher, memory.arguments
  outputs_of = functools.partial(experiment.teacher.outputs, with_taps=True)
  arrays = jax.tree.leaves(jax.eval_shape(outputs_of, teacher, experiment.abstract_batch()))
  of_batch = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
  outputs = of_batch // sharding.batch_devices(experiment.mesh)
  shared = memory.total - arguments["student"] - arguments["optimizer"] + outputs
  students = max(hbm_bytes - shared, 0) // (arguments["student"] + arguments["optimizer"])
  return (
    f"A sweep has room for about {_counted(students, 'such student')}: each adds its parameters "
    "and its optimizer's state; all share the rest, and the teacher's outputs of a batch "
    f"({outputs / 2**30:.3f} GiB a device)."
  )


def _counted(count: int, noun: str) -> str:
  return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _notes(program: Program, slice_: Topology) -> tuple[str, ...]:
  links = CHIPS[slice_.chip].device.ici_bytes_per_second
  moved = sum(collective.bytes for collective in program.collectives)
  notes = [
    "The modelled time adds up the compiler's estimated cycles, loops times their trips. It leaves "
    "out communication between chips, waiting for memory that those estimates do not foresee, and "
    "the host.",
    f"The collectives move {moved / 1e9:.2f} GB a device and step; at the links' "
    f"{links / 1e9:.0f} GB/s that takes {moved / links:.4f}"
    " s, hidden behind the computation or not.",
    "FLOPs and times are for batches in which every token is a target; the least FLOPs are "
    "those of rows that are one document each.",
  ]
  if loops := program.traced_loops:
    several = loops > 1
    notes.append(
      f"{loops} {'loops have' if several else 'loop has'} a number of trips that only the running "
      f"program knows (the head's); {'they are' if several else 'it is'} taken to run as often as "
      "the head does then."
    )
  if missing := program.without_estimate:
    notes.append(
      f"The compiler gives no estimate for {_counted(missing, 'run')} of instructions: the "
      "modelled time leaves them out."
    )
  known = sum(kernel.calls for kernel in program.kernels if kernel.flops is not None)
  if known:
    notes.append(
      f"For {_counted(known, 'call')} of the kernels of attention and head the compiler estimates "
      "nothing: the least time that their FLOPs and bytes need is taken."
    )
  if unknown := sum(kernel.calls for kernel in program.kernels if kernel.flops is None):
    notes.append(
      f"Other hand-written kernels ({_counted(unknown, 'call')}) are missing from the FLOPs, and "
      "take no longer in the model than moving their bytes does."
    )
  return tuple(notes)
