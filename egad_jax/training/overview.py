"""An overview of what a run is going to do, logged before its first step."""

from __future__ import annotations

import collections
import logging
from collections.abc import Mapping

import jax

from egad_jax import sharding
from egad_jax.data.corpus import HELD_OUT, TRAIN
from egad_jax.durability.workdir import Workdir
from egad_jax.models.model import Model
from egad_jax.training.experiment import Experiment

_LOG = logging.getLogger(__name__)


def log(
  experiment: Experiment, workdir: Workdir, students: Mapping[str, Experiment] | None = None
) -> None:
  """Logs each of `lines` as one message."""
  for line in lines(experiment, workdir, students):
    _LOG.info("%s", line)


def lines(
  experiment: Experiment, workdir: Workdir, students: Mapping[str, Experiment] | None = None
) -> list[str]:
  """Lines for people about the devices, models, data, batch, training and results directory.

  Args:
    experiment: the experiment that is run, or one of several that are trained together.
    workdir: the directory of the results.
    students: all that are trained together, by name; None for a run by itself.
  """
  rows, models, optimization = experiment.rows, experiment.models, experiment.optimization
  held_out = min(experiment.evaluation.rows, rows.held_out_size)
  micro = optimization.batch_size // optimization.accumulation
  devices = sharding.batch_devices(experiment.mesh)
  parts = [f"{micro:,} at once"] if optimization.accumulation > 1 else []
  parts += [f"{micro // devices:,} a device"] if devices > 1 else []
  split = f" ({', '.join(parts)})" if parts else ""
  update_tokens = optimization.batch_size * rows.seq_len
  epochs = optimization.steps * optimization.batch_size / rows.train_size
  return [
    f"devices:  {_devices(experiment)}",
    f"teacher:  {models.teacher_name}, {_parameters(models.teacher)}, "
    f"{jax.numpy.dtype(models.teacher_dtype).name}",
    *(
      f"student:  {f'{name}, ' if name else ''}{other.models.student.config.num_layers} layers, "
      f"{_parameters(other.models.student)}, method {other.method_name}"
      for name, other in (students or {"": experiment}).items()
    ),
    f"data:     {rows.train_size:,} rows of {rows.seq_len:,} tokens to train on "
    f"({rows.num_targets[TRAIN]:,} tokens to predict, {rows.utilization:.0%} full); held out: "
    f"{held_out:,} of {rows.held_out_size:,} rows ({rows.num_targets[HELD_OUT]:,} tokens)",
    f"batch:    {optimization.batch_size:,} rows{split}, {update_tokens:,} tokens an update",
    f"training: {optimization.steps:,} steps are {epochs:,.2f} epochs, "
    f"{optimization.steps * update_tokens:,} tokens",
    f"results:  {workdir.path}",
  ]


def facts(experiment: Experiment) -> dict[str, int | str]:
  """What trackers are told of a run beside its config: its models, its rows and its devices."""
  models, rows = experiment.models, experiment.rows
  return {
    "teacher": models.teacher_name,
    "teacher_parameters": models.teacher.num_parameters(),
    "student_parameters": models.student.num_parameters(),
    "train_rows": rows.train_size,
    "held_out_rows": rows.held_out_size,
    "devices": _devices(experiment),
  }


def _devices(experiment: Experiment) -> str:
  own = experiment.teacher.meshes
  every = [device for mesh in (experiment.mesh, *own) for device in mesh.devices.flat]
  kinds = collections.Counter(device.device_kind for device in every)
  processes = len({device.process_index for device in every})
  count = " and ".join(f"{number} x {kind}" for kind, number in kinds.items())
  text = f"{count}, {processes} process{'' if processes == 1 else 'es'}"
  text += f"; mesh {_axes(experiment.mesh)}"
  return text + "".join(f"; the teacher's {_axes(mesh)}" for mesh in own)


def _axes(mesh: jax.sharding.Mesh) -> str:
  return " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def _parameters(model: Model) -> str:
  return f"{model.num_parameters():,} parameters"
