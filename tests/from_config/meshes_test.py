"""The devices of student and teacher, from the keys of a config."""

from __future__ import annotations

import types

import jax
import pytest

from egad_jax import from_config, sharding
from egad_jax.errors import InputError
from egad_jax.from_config.meshes import make_meshes
from tests.from_config.configs import changed


def test_a_teacher_without_devices_of_its_own_shares_the_student_s():
  mesh, teacher_mesh = make_meshes(changed(), jax.devices())
  assert mesh is teacher_mesh
  assert mesh.size == 8


def test_the_last_devices_are_the_teacher_s():
  config = changed(teacher__mesh__devices=4, teacher__mesh__tensor=2, mesh__data=2)
  mesh, teacher_mesh = make_meshes(config, jax.devices())
  assert mesh.devices.shape == (1, 2, 2, 1)
  assert teacher_mesh.devices.shape == (1, 1, 2, 2)
  assert [*mesh.devices.flat, *teacher_mesh.devices.flat] == jax.devices()


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"teacher__mesh__devices": 8}, r"teacher\.mesh\.devices \(8\) leaves none of the 8 devices"),
    ({"teacher__mesh__devices": 4, "teacher__mesh__data": 3}, r"teacher\.mesh\.data=3"),
    (
      {"teacher__mesh__devices": 3, "mesh__fsdp": 1, "mesh__tensor": -1, "seq_len": 65},
      r"over 3 devices .*divide config\.batch_size / accumulation \(8\).*teacher\.mesh\.tensor",
    ),
    (
      {"teacher__mesh__devices": 3, "teacher__mesh__fsdp": 1, "teacher__mesh__tensor": 3}
      | {"mesh__fsdp": 1, "mesh__tensor": -1, "seq_len": 65},
      r"config\.teacher\.mesh\.tensor \(3\) must divide config\.seq_len \(65\)",
    ),
  ],
)
def test_what_does_not_fit_says_why(values, message):
  with pytest.raises(InputError, match=message):
    make_meshes(changed(**values), jax.devices())


def test_several_processes_share_their_devices():
  devices = [types.SimpleNamespace(process_index=i, platform="cpu") for i in (0, 0, 1, 1)]
  with pytest.raises(InputError, match=r"devices \(2\) needs all devices in one process"):
    make_meshes(changed(teacher__mesh__devices=2), devices)


def test_host_memory_that_devices_do_not_read(monkeypatch):
  monkeypatch.setattr(sharding, "has_host_memory", lambda mesh: False)
  with pytest.raises(
    InputError, match=r"placement=host needs devices .*\(cpu\) do not; use device"
  ):
    make_meshes(changed(teacher__placement="host"), jax.devices())


def test_a_plan_is_of_one_mesh():
  with pytest.raises(InputError, match=r"teacher\.mesh\.devices \(4\) must be 0 for a plan"):
    from_config.plan_run(changed(teacher__mesh__devices=4), jax.devices())
