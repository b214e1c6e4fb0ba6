"""Makes the attention of a model, on the devices of a mesh, from `config.attention`."""

from __future__ import annotations

import logging
import re
from typing import Any

import jax.numpy as jnp

from egad_jax.errors import InputError
from egad_jax.from_config.values import DTYPES, Config
from egad_jax.models import cudnn, splash
from egad_jax.models.attention import XLA, PackedAttention
from egad_jax.models.config import DecoderConfig

_LOG = logging.getLogger(__name__)
ATTENTIONS = ("auto", "splash", "cudnn", "xla")
# The attention kernel of each platform that has one.
_KERNELS = {"tpu": "splash", "gpu": "cudnn"}


def check_attention(config: Config, mesh: Any) -> None:
  """Checks that `config.attention` suits the platform, before models and data are read.

  Args:
    config: checked by `validate`.
    mesh: the mesh to run on. A plan's mesh has devices that this machine does not have.

  Raises:
    InputError: the kernel that the config names does not run on the mesh's devices.
  """
  platform = _device(mesh).platform
  if config.attention in _KERNELS.values() and _KERNELS.get(platform) != config.attention:
    (needed,) = (name for name, kernel in _KERNELS.items() if kernel == config.attention)
    raise InputError(
      f"config.attention={config.attention} runs on a {needed.upper()} only, and the devices of "
      f"the mesh are of platform {platform}; use auto or xla."
    )


def make_attention(config: Config, who: str, shape: DecoderConfig, mesh: Any) -> PackedAttention:
  """The attention of the teacher or the student.

  Args:
    config: checked by `validate`.
    who: "teacher" or "student".
    shape: the architecture of that model.
    mesh: the mesh that the model runs on.

  Raises:
    InputError: the kernel that the config names does not support this model.
  """
  check_attention(config, mesh)
  kernel = _KERNELS.get(_device(mesh).platform)
  if kernel is None or config.attention == "xla":
    return XLA
  sizes = {"seq_len": config.seq_len, "head_dim": shape.head_dim}
  if kernel == "splash":
    reason = splash.unserved(**sizes)
  else:
    capability = _compute_capability(_device(mesh))
    reason = cudnn.unserved(
      **sizes,
      soft_cap=shape.attention_soft_cap,
      dtype=jnp.dtype(DTYPES[config[who].dtype]),
      capability=capability,
    )
  if reason is None:
    return splash.splash_attention(mesh) if kernel == "splash" else cudnn.cudnn_attention(mesh)
  if config.attention == "auto":
    _LOG.info("attention of the %s: xla, because %s cannot serve it: %s", who, kernel, reason)
    return XLA
  raise InputError(
    f"config.attention={kernel} cannot serve the {who}: {reason}; use auto, which takes xla for it."
  )


def _device(mesh: Any) -> Any:
  return mesh.devices.flat[0]


def _compute_capability(device: Any) -> tuple[int, ...] | None:
  """An NVIDIA GPU's compute capability, such as (9, 0); None for any other device.

  AMD GPUs give a name such as gfx90a instead.
  """
  text = str(getattr(device, "compute_capability", ""))
  return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+\.\d+", text) else None
