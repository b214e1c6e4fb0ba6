"""What a run is going to do, told before its first step."""

from __future__ import annotations

import collections
import logging

import jax

from egad_jax import sharding
from egad_jax.data.corpus import HELD_OUT, TRAIN
from egad_jax.durability.workdir import Workdir
from egad_jax.training.compiled_run import count_parameters
from egad_jax.training.run import Run

_LOG = logging.getLogger(__name__)


def log(run: Run, workdir: Workdir) -> None:
  """Logs `lines`, one each."""
  for line in lines(run, workdir):
    _LOG.info("%s", line)


def lines(run: Run, workdir: Workdir) -> list[str]:
  """Devices and mesh, models, data, batch and place of the results, in words."""
  rows = run.rows
  held_out = min(run.held_out_rows, rows.held_out_size)
  micro = run.batch_size // run.accumulation
  devices = sharding.batch_devices(run.mesh)
  parts = [f"{micro:,} at once"] if run.accumulation > 1 else []
  parts += [f"{micro // devices:,} a device"] if devices > 1 else []
  split = f" ({', '.join(parts)})" if parts else ""
  places = run.batch_size * rows.seq_len
  epochs = run.steps * run.batch_size / rows.train_size
  return [
    f"devices:  {_devices(run)}",
    f"teacher:  {run.pair.teacher_name}, {_parameters(run.abstract_teacher())}, "
    f"{jax.numpy.dtype(run.pair.teacher_dtype).name}",
    f"student:  {run.pair.student.config.num_layers} layers, "
    f"{_parameters(run.abstract_state().params['student'])}, method {run.method_name}",
    f"data:     {rows.train_size:,} rows of {rows.seq_len:,} tokens to train on "
    f"({rows.num_targets[TRAIN]:,} tokens to predict, {rows.utilization:.0%} full); held out: "
    f"{held_out:,} of {rows.held_out_size:,} rows ({rows.num_targets[HELD_OUT]:,} tokens)",
    f"batch:    {run.batch_size:,} rows{split}, {places:,} tokens an update",
    f"training: {run.steps:,} steps are {epochs:,.2f} epochs, {run.steps * places:,} tokens",
    f"results:  {workdir.path}",
  ]


def _devices(run: Run) -> str:
  meshes = [run.mesh, run.teacher_mesh] if run.separate else [run.mesh]
  every = [device for mesh in meshes for device in mesh.devices.flat]
  kinds = collections.Counter(device.device_kind for device in every)
  processes = len({device.process_index for device in every})
  count = " and ".join(f"{number} x {kind}" for kind, number in kinds.items())
  text = f"{count}, {processes} process{'' if processes == 1 else 'es'}; mesh {_axes(run.mesh)}"
  return f"{text}; the teacher's {_axes(run.teacher_mesh)}" if run.separate else text


def _axes(mesh: jax.sharding.Mesh) -> str:
  return " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def _parameters(params: object) -> str:
  return f"{count_parameters(params):,} parameters"
