"""The environment in which jax, imported afterwards, compiles for TPUs that are not there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import MutableMapping

from egad_jax.chips import topology
from egad_jax.errors import InputError


def prepare_environment(name: str, environment: MutableMapping[str, str] = os.environ) -> None:
  """Sets the variables that libtpu needs on a machine without TPUs; call it before importing jax.

  Args:
    name: a topology such as v5e:2x2.
    environment: the variables to change.

  Raises:
    InputError: the topology does not exist, or libtpu is not installed.
  """
  slice_ = topology(name)
  if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in environment:
    raise InputError("planning needs the TPU compiler, libtpu: pip install libtpu.")
  environment.update(
    {
      "TPU_SKIP_MDS_QUERY": "1",
      "TPU_WORKER_HOSTNAMES": "localhost",
      "TPU_ACCELERATOR_TYPE": f"{slice_.chip}-8",
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
      "JAX_PLATFORMS": "cpu",
    }
  )
