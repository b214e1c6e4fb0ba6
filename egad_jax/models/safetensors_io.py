"""Hugging Face directories: config.json with safetensors, whole or in shards."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from egad_jax.errors import InputError
from egad_jax.models import llama
from egad_jax.models.config import DecoderConfig
from egad_jax.models.model import Params
from egad_jax.regular_file import is_there, read_regular, require_regular

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# A file of the directory itself. The file may be a link, as in Hugging Face's cache.
_SHARD_NAME = re.compile(r"[\w +,.=@-]{1,200}\.safetensors", re.ASCII)
# Safetensors' names of the kinds of values that are read.
_FLOATING = ("F64", "F32", "F16", "BF16")
_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def read_directory(directory: pathlib.Path) -> tuple[DecoderConfig, Params]:
  """Reads a Llama model from `config.json` and safetensors.

  Args:
    directory: holds config.json and model.safetensors, or the index of its shards.

  Returns:
    The architecture and the parameters, numpy float32.

  Raises:
    InputError: if a file is missing, truncated or not what it should be, if the model cannot be
      represented exactly, or if a tensor is missing, unexpected or of the wrong shape.
  """
  config_path = directory / "config.json"
  config = llama.config_from_hf(str(config_path), read_json(config_path))
  with contextlib.ExitStack() as stack:
    found = _open_tensors(directory, stack)
    extra = {name for name in found if llama.DERIVED_BUFFERS.fullmatch(name)}
    if config.tie_embeddings:
      extra |= _tied_copy(directory, found)
    shapes = {name: _shape(found[name], name) for name in found.keys() - extra}
    llama.check_tensors(str(directory), config, lambda tensor: tensor.hf, shapes)

    def read(tensor: llama.Tensor) -> np.ndarray:
      return _read_floating(directory, found[tensor.hf], tensor.hf)

    return config, llama.assemble(config, read)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    InputError: if the file is missing or holds something else.
  """
  if not is_there(path):
    raise InputError(f"{path}: no such file; expected the one of a Hugging Face directory.")
  content = read_regular(path)
  try:
    data = json.loads(content.decode("utf-8"))
  # Nesting too deep for Python's parser is a RecursionError.
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path} is not valid JSON: {error}.") from error
  if not isinstance(data, dict):
    raise InputError(f"{path}: expected a JSON object; got {type(data).__name__}.")
  return data


def write_safetensors(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray], *, dtype: str = "float32"
) -> None:
  """Writes one safetensors file that transformers reads.

  Args:
    path: where.
    tensors: names to arrays.
    dtype: "float32" or "bfloat16", what the arrays are cast to.

  Raises:
    InputError: if `dtype` is another.
  """
  if dtype not in _DTYPES:
    raise InputError(f'dtype must be one of {", ".join(_DTYPES)}; got "{dtype}".')
  cast = {name: np.ascontiguousarray(t.astype(_DTYPES[dtype])) for name, t in tensors.items()}
  # transformers refuses files that do not say which framework's layout they have.
  safetensors.numpy.save_file(cast, path, metadata={"format": "pt"})


def _open_tensors(directory: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
  """Maps each tensor's name to the open file that holds it."""
  index = directory / INDEX
  if is_there(index):
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(_is_plain_name, weight_map.values())):
      raise InputError(
        f"{index}: expected a weight_map from tensor names to *.safetensors beside it."
      )
    files = sorted(set(weight_map.values()))
  elif is_there(directory / SINGLE):
    files = [SINGLE]
  else:
    raise InputError(f"{directory}: expected {SINGLE} or {INDEX}; it has neither.")
  found = {}
  for file in files:
    shard = _open_shard(directory / file, stack)
    found.update(dict.fromkeys(shard.keys(), shard))
  if is_there(index):
    llama.check_names(f"{directory} (by its index)", expected=weight_map, got=found)
  return found


def _is_plain_name(file: Any) -> bool:
  return isinstance(file, str) and _SHARD_NAME.fullmatch(file) is not None


def _open_shard(path: pathlib.Path, stack: contextlib.ExitStack) -> Any:
  if not is_there(path):
    raise InputError(f"{path}: no such file, though the index names it; fetch it again.")
  require_regular(path)
  try:
    return stack.enter_context(safetensors.safe_open(path, framework="numpy"))
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(
      f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}. It may be "
      "truncated; fetch it again."
    ) from error


def _tied_copy(directory: pathlib.Path, found: Mapping[str, Any]) -> set[str]:
  """Accepts a saved copy of tied embeddings, if it is one."""
  head, table = "lm_head.weight", "model.embed_tokens.weight"
  if head not in found:
    return set()
  if table in found:
    copy, original = (_read_floating(directory, found[name], name) for name in (head, table))
    if not np.array_equal(copy, original):
      raise InputError(
        f"{directory}: tensor {head} must equal {table} because config.json says "
        "tie_word_embeddings; they differ. Set it to false in config.json."
      )
  return {head}


def _shape(shard: Any, name: str) -> tuple[int, ...]:
  return tuple(shard.get_slice(name).get_shape())


def _read_floating(directory: pathlib.Path, shard: Any, name: str) -> np.ndarray:
  kind = shard.get_slice(name).get_dtype()
  if kind not in _FLOATING:
    raise InputError(
      f"{directory}: tensor {name} must be float32, float16 or bfloat16; got {kind}. "
      "Quantized weights are read from GGUF only."
    )
  array = shard.get_tensor(name)
  llama.check_finite(str(directory), name, array)
  return array
