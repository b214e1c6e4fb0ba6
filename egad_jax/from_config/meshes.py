"""Makes the meshes of student and teacher from `config.mesh` and `config.teacher`."""

from __future__ import annotations

from typing import Any

import jax

from egad_jax import sharding
from egad_jax.errors import InputError
from egad_jax.from_config.values import Config


def make_meshes(config: Config, devices: Any = None) -> tuple[Any, Any]:
  """The student's mesh and the teacher's: the same one unless the teacher has its own devices.

  Args:
    config: checked by `validate`.
    devices: the devices to make meshes of; None for all devices of all processes.

  Raises:
    InputError: there are too few devices, they do not fit the mesh axes, or they cannot read host
      memory although config.teacher.placement asks for it.
  """
  devices = list(jax.devices() if devices is None else devices)
  own = config.teacher.mesh.devices
  if own >= len(devices):
    raise InputError(
      f"config.teacher.mesh.devices ({own}) leaves none of the {len(devices)} devices to the "
      "student; use fewer, or 0 to share them all."
    )
  if own and len({device.process_index for device in devices}) > 1:
    raise InputError(
      f"config.teacher.mesh.devices ({own}) needs all devices in one process, since hidden states "
      "go from the teacher's to the student's; with several processes use 0, and "
      "config.teacher.placement=host if memory is short."
    )
  mesh = sharding.make_mesh(config.mesh, devices[: len(devices) - own])
  _check_divides(config, mesh, "mesh")
  teacher_mesh = mesh
  if own:
    axes = {"replica": 1, **config.teacher.mesh}
    teacher_mesh = sharding.make_mesh(axes, devices[-own:], name="teacher.mesh")
    _check_divides(config, teacher_mesh, "teacher.mesh")
  if config.teacher.placement == "host" and not sharding.has_host_memory(teacher_mesh):
    raise InputError(
      "config.teacher.placement=host needs devices that read the memory of their host, and these "
      f"({teacher_mesh.devices.flat[0].platform}) do not; use device."
    )
  return mesh, teacher_mesh


def eval_batch(config: Config) -> int:
  """Held-out rows per batch: config.eval.batch_size, or the rows of a micro-batch if that is 0."""
  return config.eval.batch_size or config.batch_size // config.accumulation


def _check_divides(config: Config, mesh: Any, name: str) -> None:
  devices, micro = sharding.batch_devices(mesh), config.batch_size // config.accumulation
  for key, rows in (("batch_size / accumulation", micro), ("eval.batch_size", eval_batch(config))):
    if rows % devices:
      raise InputError(
        f"the mesh splits rows over {devices} devices (replica * data * fsdp), which must divide "
        f"config.{key} ({rows}); use a multiple of {devices} or give devices to {name}.tensor."
      )
  if config.seq_len % sharding.tensor_devices(mesh):
    raise InputError(
      f"config.{name}.tensor ({sharding.tensor_devices(mesh)}) must divide config.seq_len "
      f"({config.seq_len})."
    )
