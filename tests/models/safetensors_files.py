"""Safetensors files as the safetensors package itself writes them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors.numpy

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def write_safetensors(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray], *, dtype: str = "float32"
) -> None:
  """Writes arrays, cast to a dtype, as one file that transformers reads."""
  cast = {name: np.ascontiguousarray(t.astype(_DTYPES[dtype])) for name, t in tensors.items()}
  safetensors.numpy.save_file(cast, path, metadata={"format": "pt"})
