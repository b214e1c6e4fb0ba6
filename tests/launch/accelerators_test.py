"""What a user has set for JAX and can mend is bad input; what may pass is not."""

from __future__ import annotations

import sys

import jax
import pytest

import launch
from egad_jax.errors import InputError
from egad_jax.files import object_store
from launch import accelerators, command_line


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ("--xla_no_such_flag=1", "Unknown flag in XLA_FLAGS: --xla_no_such_flag=1"),
    ("--xla_force_host_platform_device_count=many", "cannot read one of the values"),
    ("--xla_force_host_platform_device_count=2", ""),
  ],
)
def test_flags_that_xla_does_not_take(flags, message, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", flags)
  if not message:
    return accelerators.import_jax()
  with pytest.raises(InputError, match=message):
    accelerators.import_jax()


def test_no_process_is_started_without_flags(monkeypatch):
  monkeypatch.setattr(accelerators.subprocess, "run", None)
  accelerators.import_jax({"XLA_FLAGS": " "})


@pytest.mark.parametrize(
  ("error", "refused"),
  [
    (RuntimeError("Unable to initialize backend 'cuda': no such plugin (set JAX_PLATFORMS"), True),
    (AssertionError(), True),
    (RuntimeError("Unable to initialize backend 'tpu': ABORTED: The TPU is already in use"), False),
    (RuntimeError("UNAVAILABLE: TPU initialization failed"), False),
  ],
)
def test_a_platform_that_is_not_there_and_one_that_is_busy(error, refused, monkeypatch):
  def fail():
    raise error

  monkeypatch.setattr(jax, "devices", fail)
  with pytest.raises(InputError if refused else RuntimeError) as found:
    accelerators.require_devices({"JAX_PLATFORMS": "cuda"})
  assert isinstance(found.value, InputError) == refused
  if refused:
    assert "JAX_PLATFORMS='cuda'" in str(found.value)


def test_a_variable_that_jax_cannot_read(monkeypatch):
  monkeypatch.setitem(sys.modules, "jax", None)
  monkeypatch.setattr("builtins.__import__", refuse(ValueError("invalid truth value 'maybe'")))
  with pytest.raises(InputError, match=r"invalid truth value 'maybe'\. Correct the variable JAX_"):
    accelerators.import_jax({})


def refuse(error):
  whole = __import__

  def importing(name, *rest):
    if name == "jax":
      raise error
    return whole(name, *rest)

  return importing


@pytest.mark.parametrize(
  ("error", "message"),
  [
    (
      ImportError("Please install gcsfs"),
      "gs:// needs the Python package gcsfs.*pip install gcsfs",
    ),
    (PermissionError("Anonymous caller does not have storage.objects.list access"), "Log in"),
    (RuntimeError("Your default credentials were not found"), "gcloud auth application-default"),
    (OSError("HttpError 403"), "that you may use it"),
    (ConnectionError("the network is down"), None),
  ],
)
def test_a_store_that_is_not_to_be_had(error, message, monkeypatch):
  def fail(self):
    raise error

  path = type(object_store.epath.Path("gs://bucket/x"))
  monkeypatch.setattr(path, "exists", fail)
  with pytest.raises(InputError if message else type(error), match=message or str(error)):
    object_store.require("gs://bucket/x", "--workdir")
  object_store.require("/a/path", "--workdir")


def test_packages_that_are_missing_are_named(monkeypatch, capfd):
  launch.require_environment()
  monkeypatch.setattr(launch, "_PACKAGES", ("json", "no_such_package", "neither"))
  with pytest.raises(SystemExit) as found:
    launch.require_environment()
  assert found.value.code == 2
  error = capfd.readouterr().err
  assert "lacks no_such_package, neither. Use .venv/bin/python" in error
  assert len(error.splitlines()) == 1
  monkeypatch.setattr(launch, "_LEAST_PYTHON", (3, 99))
  with pytest.raises(SystemExit):
    launch.require_environment()
  assert "at least 3.99 is needed" in capfd.readouterr().err


def test_every_package_that_is_required_is_looked_for():
  """But for those that are known to be imported by others or for pictures alone."""
  root = command_line.__file__.rsplit("/", 2)[0]
  with open(f"{root}/requirements.txt") as file:
    names = [line.partition(">")[0].partition("[")[0] for line in file if line[0] != "#"]
  modules = {"absl-py": "absl", "orbax-checkpoint": "orbax", "pyyaml": "yaml"}
  expected = {modules.get(name, name).replace("-", "_") for name in names}
  assert expected - set(launch._PACKAGES) <= {"matplotlib"}


def test_a_package_that_another_one_needs_is_named(monkeypatch):
  def main(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

  with pytest.raises(InputError, match="the Python package optax is not installed"):
    command_line._with_packages(lambda: main("optax"))
  with pytest.raises(ModuleNotFoundError):
    command_line._with_packages(lambda: main("egad_jax.no_such_module"))
