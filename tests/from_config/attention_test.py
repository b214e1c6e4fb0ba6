"""Which attention a config gets on which devices, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
import types

import numpy as np
import pytest

from egad_jax import from_config
from egad_jax.errors import InputError
from egad_jax.from_config.attention import check_attention, make_attention
from egad_jax.models.architectures import architecture
from tests.from_config.configs import changed

SHAPE = architecture("smollm2-135m")


def mesh_of(platform, **attributes):
  """As much of a mesh as the choice reads; its devices are not there."""
  device = types.SimpleNamespace(platform=platform, **attributes)
  return types.SimpleNamespace(devices=np.array([device], dtype=object))


CPU, TPU = mesh_of("cpu"), mesh_of("tpu")
AMPERE, TURING = (mesh_of("gpu", compute_capability=text) for text in ("8.0", "7.5"))
AMD = mesh_of("gpu", compute_capability="gfx90a")


def chosen(attention, mesh, *, shape=SHAPE, seq_len=256, dtype="bfloat16"):
  config = changed(attention=attention, seq_len=seq_len, teacher__dtype=dtype)
  return make_attention(config, "teacher", shape, mesh).name


@pytest.mark.parametrize(
  ("mesh", "options", "wanted"),
  [
    (CPU, {}, "xla"),
    (TPU, {}, "splash"),
    (TPU, {"seq_len": 100}, "xla"),
    (TPU, {"shape": dataclasses.replace(SHAPE, head_dim=12)}, "xla"),
    (TPU, {"dtype": "float32"}, "splash"),
    (AMPERE, {}, "cudnn"),
    (AMPERE, {"dtype": "float32"}, "xla"),
    (AMPERE, {"shape": dataclasses.replace(SHAPE, head_dim=256)}, "xla"),
    (AMPERE, {"shape": dataclasses.replace(SHAPE, attention_soft_cap=50.0)}, "xla"),
    (TPU, {"shape": dataclasses.replace(SHAPE, attention_soft_cap=50.0)}, "splash"),
    (TURING, {}, "xla"),
    (AMD, {}, "xla"),
    (mesh_of("gpu"), {}, "xla"),
  ],
)
def test_auto(mesh, options, wanted):
  assert chosen("auto", mesh, **options) == wanted


def test_auto_says_why_it_takes_xla(caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger("egad_jax"), "propagate", True)
  caplog.set_level(logging.INFO, "egad_jax")
  chosen("auto", AMPERE, shape=dataclasses.replace(SHAPE, attention_soft_cap=50.0))
  assert (
    "attention of the teacher: xla, because cudnn cannot serve it: it has no soft" in caplog.text
  )


@pytest.mark.parametrize("mesh", [CPU, TPU, AMPERE])
def test_xla_is_always_to_be_had(mesh):
  assert chosen("xla", mesh) == "xla"


def test_kernels_where_they_run():
  assert chosen("splash", TPU) == "splash"
  assert chosen("cudnn", AMPERE) == "cudnn"


@pytest.mark.parametrize(
  ("attention", "mesh", "needed", "platform"),
  [("splash", CPU, "TPU", "cpu"), ("splash", AMPERE, "TPU", "gpu"), ("cudnn", TPU, "GPU", "tpu")],
)
def test_a_kernel_of_other_devices_is_refused(attention, mesh, needed, platform):
  message = (
    f"config.attention={attention} runs on a {needed} only, and the devices of the mesh are of "
    f"platform {platform}; use auto or xla"
  )
  with pytest.raises(InputError, match=message):
    check_attention(changed(attention=attention), mesh)


@pytest.mark.parametrize(
  ("attention", "mesh", "options", "reason"),
  [
    ("splash", TPU, {"seq_len": 100}, "rows must be a multiple of 128 tokens long, .* have 100"),
    ("cudnn", AMPERE, {"dtype": "float32"}, "the dtype must be bfloat16, and it is float32"),
    ("cudnn", TURING, {}, r"it needs an NVIDIA GPU of compute capability 8\.0 or above"),
  ],
)
def test_a_kernel_that_cannot_serve_is_refused(attention, mesh, options, reason):
  message = rf"config\.attention={attention} cannot serve the teacher: {reason}; use auto"
  with pytest.raises(InputError, match=message):
    chosen(attention, mesh, **options)


def test_a_build_refuses_before_it_prepares_data(tmp_path, small):
  with pytest.raises(InputError, match=r"config\.attention=splash runs on a TPU only"):
    from_config.build(small(attention="splash", data__cache=""), tmp_path)
  assert not list(tmp_path.iterdir())
