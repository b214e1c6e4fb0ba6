"""Reads Hugging Face directories with one or several safetensors files."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors

from egad_jax.errors import InputError
from egad_jax.files.json_file import read_json
from egad_jax.files.paths import is_local
from egad_jax.files.regular_file import is_there, require_regular
from egad_jax.lazy_arrays import BLOCK_BYTES, Slices, blocks, slices_of
from egad_jax.models import family as families
from egad_jax.models import layout, safetensors_ranges
from egad_jax.models.checkpoint_checks import check_depth, check_finite, check_tensors
from egad_jax.models.config import DecoderConfig
from egad_jax.models.directory_layout import CONFIG, INDEX, SINGLE, check_layout, other_weights
from egad_jax.models.family import Family
from egad_jax.models.foreign_keys import Table, check_closed, listed, shown
from egad_jax.models.generation_settings import GenerationSettings, read_settings
from egad_jax.models.model import Params

# Name of a file directly in the directory; it may be a link, as in Hugging Face's cache.
_SHARD_NAME = re.compile(r"[\w +,.=@-]{1,200}\.safetensors", re.ASCII)
# Safetensors' names of the dtypes that are read.
_FLOATING = ("F64", "F32", "F16", "BF16")
SAFETENSORS_INDEX = Table(read=frozenset({"weight_map"}), harmless=frozenset({"metadata"}))

# Metadata of the index, where programs that made it leave notes for people.
INDEX_METADATA = Table(
  read=frozenset(),
  harmless=frozenset({"total_size", "total_parameters", "format", "mergekit_version"}),
)


class DirectoryModel(NamedTuple):
  """A model read from a Hugging Face directory, without its tokenizer and its licence.

  Attributes:
    config: the model's architecture.
    params: parameters in the layout of `Model.init`, not read yet.
    generation: end tokens and sampling settings that the files state.
    unread: keys, files and tensors that are neither read nor known to be harmless.
  """

  config: DecoderConfig
  params: Params
  generation: GenerationSettings
  unread: tuple[str, ...]


class _Stored(NamedTuple):
  """A tensor of a safetensors file, of which only the header has been read.

  Attributes:
    file: the file.
    name: the tensor's name there.
    shape: its shape.
    dtype: safetensors' name of its dtype.
    place: where it is in a file of an object store; None for a file on a disk.
  """

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: str
  place: safetensors_ranges.Place | None = None

  def read(self, slices: Slices) -> np.ndarray:
    """The values at `slices`, one for each axis, in the file's dtype.

    The file is opened anew: memory holds only the pages of this tensor, and they go with it.

    Raises:
      InputError: the file has changed and is no longer whole, or a value is not finite.
    """
    if self.place is not None:
      array = safetensors_ranges.read(self.file, self.place, slices)
    else:
      with contextlib.ExitStack() as stack:
        array = _open_shard(self.file, stack).get_slice(self.name)[slices]
    check_finite(str(self.file), self.name, array)
    return array


def read_directory(directory: pathlib.Path) -> DirectoryModel:
  """Reads a model from `config.json`, `generation_config.json` and the headers of safetensors.

  Values are read when the parameters are.

  Args:
    directory: directory with config.json and model.safetensors, or the index of its shards.

  Raises:
    InputError: a file is missing, truncated or malformed; the model cannot be represented exactly;
      a tensor is missing, unexpected, or of the wrong shape or dtype; or there are two sets of
      weights.
  """
  check_layout(directory)
  config_path = directory / CONFIG
  data = read_json(config_path)
  family = families.family_from_hf(str(config_path), data)
  config = families.config_from_hf(str(config_path), data)
  generation, unread = read_settings(directory, data, config.vocab_size)
  unread = [f"{CONFIG}: {key}" for key in families.unread_keys(data)] + unread
  found, more = _find_tensors(directory, family)
  check_depth(str(directory), config, len(found))
  tensors = layout.tensors(family.tensors, config)
  found = _with_prefix(family, {n: at for n, at in found.items() if not family.is_derived(n)})
  for at in found.values():
    _check_dtype(directory, at)
  if config.tie_embeddings:
    _one_table(directory, found, family)
  shapes = {name: at.shape for name, at in found.items()}
  check_tensors(str(directory), family.title, tensors, lambda tensor: tensor.hf, shapes)
  params = layout.assemble(tensors, lambda tensor, slices: found[tensor.hf].read(slices))
  return DirectoryModel(config, params, generation, (*unread, *more))


def _with_prefix(family: Family, found: dict[str, _Stored]) -> dict[str, _Stored]:
  """The tensors by their full names, if the file leaves the family's prefix out of all of them."""
  if not family.prefix or any(name.startswith(family.prefix) for name in found):
    return found
  named = {row.hf for row in family.tensors}
  return {name if name in named else family.prefix + name: at for name, at in found.items()}


def _find_tensors(directory: pathlib.Path, family: Family) -> tuple[dict[str, _Stored], list[str]]:
  """Reads all headers; returns the tensors by name, and what beside them is not read."""
  index = directory / INDEX
  if not is_there(index):
    found = _read_header(directory / SINGLE)
    return found, [f"the file {name}" for name in other_weights(directory, {SINGLE})]
  weight_map, more = _read_index(index)
  files = {file: _read_header(directory / file) for file in sorted(set(weight_map.values()))}
  found = {}
  for name, file in weight_map.items():
    if name not in files[file]:
      raise InputError(
        f"{index} says that {name} is in {file}, which lacks it; they do not belong together. Copy "
        "the index and all its files again."
      )
    found[name] = files[file][name]
  for file, held in files.items():
    unnamed = [n for n in held if n not in weight_map and not family.is_derived(n)]
    if unnamed:
      raise InputError(
        f"{directory / file} has unexpected tensors: {listed(unnamed)}, which {INDEX} does not "
        "name; they do not belong together. Copy the index and all its files again."
      )
    twice = [name for name in held if weight_map.get(name, file) != file]
    if twice:
      more.append(f"{file}: the tensors {listed(twice)}, which the index takes from elsewhere")
  return found, [f"the file {name}" for name in other_weights(directory, files)] + more


def _read_header(path: pathlib.Path) -> dict[str, _Stored]:
  """The tensors of a file by name, sorted."""
  if not is_there(path):
    raise InputError(f"{path}: no such file, though the index names it; fetch it again.")
  if not is_local(path):
    places = safetensors_ranges.read_header(path)
    return {name: _Stored(path, name, at.shape, at.dtype, at) for name, at in places.items()}
  with contextlib.ExitStack() as stack:
    shard = _open_shard(path, stack)
    slices = {name: shard.get_slice(name) for name in sorted(shard.keys())}
    return {
      name: _Stored(path, name, tuple(at.get_shape()), at.get_dtype())
      for name, at in slices.items()
    }


def _read_index(index: pathlib.Path) -> tuple[dict[str, str], list[str]]:
  """Reads an index: tensor name -> file name, and the unknown keys of its metadata."""
  data = read_json(index)
  check_closed(
    str(index), SAFETENSORS_INDEX.unknown(data), "Copy the index again, or save the model again."
  )
  weight_map, metadata = data.get("weight_map"), data.get("metadata") or {}
  if not isinstance(weight_map, dict) or not all(map(_is_plain_name, weight_map.values())):
    raise InputError(
      f"{index}: expected a weight_map from tensor names to *.safetensors beside it. Copy the "
      "index again."
    )
  if not isinstance(metadata, dict):
    raise InputError(f"{index}: metadata must be an object; got {shown(metadata)}.")
  return weight_map, [f"{index.name}: metadata.{key}" for key in INDEX_METADATA.unknown(metadata)]


def _is_plain_name(file: Any) -> bool:
  return isinstance(file, str) and _SHARD_NAME.fullmatch(file) is not None


def _open_shard(path: pathlib.Path, stack: contextlib.ExitStack) -> Any:
  require_regular(path)
  try:
    return stack.enter_context(safetensors.safe_open(path, framework="numpy"))
  except (safetensors.SafetensorError, OSError) as error:
    raise InputError(
      f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: {error}. It may be "
      "truncated; fetch it again."
    ) from error


def _one_table(directory: pathlib.Path, found: dict[str, _Stored], family: Family) -> None:
  """Reduces the two names that a tied embedding may have to one.

  Raises:
    InputError: both are there with different values.
  """
  names = {row.ours[0]: row.hf for row in family.tensors}
  table, head = names["embedding"], names["unembedding"]
  copy = found.pop(head, None)
  if copy is None:
    return
  original = found.setdefault(table, copy)
  if original is copy:
    return
  same = original.shape == copy.shape and all(
    np.array_equal(original.read(rows), copy.read(rows)) for rows in _rows(original.shape)
  )
  if not same:
    raise InputError(
      f"{directory}: tensor {head} must equal {table} because config.json says "
      "tie_word_embeddings; they differ. Set it to false in config.json."
    )


def _rows(shape: tuple[int, ...]) -> Iterator[Slices]:
  """Slices of all rows of a table, some at a time."""
  for index in blocks(shape, np.dtype(np.float64).itemsize, BLOCK_BYTES):
    yield slices_of(index, shape)


def _check_dtype(directory: pathlib.Path, at: _Stored) -> None:
  if at.dtype not in _FLOATING:
    raise InputError(
      f"{directory}: tensor {at.name} must be float32, float16, bfloat16 or float64; got "
      f"{at.dtype}. Quantized weights are read from GGUF only: use the model's GGUF file."
    )
