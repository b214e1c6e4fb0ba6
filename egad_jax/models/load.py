"""Loads pretrained models: GGUF files and Hugging Face directories, local or on the Hub."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from typing import NamedTuple

import numpy as np

from egad_jax import sources
from egad_jax.errors import InputError
from egad_jax.files import hub
from egad_jax.files.paths import is_local
from egad_jax.lazy_arrays import BLOCK_BYTES, LazyArray, blocks, with_rows
from egad_jax.models.config import DecoderConfig
from egad_jax.models.generation_settings import NO_SETTINGS, GenerationSettings
from egad_jax.models.gguf_import import read_gguf
from egad_jax.models.license import License, license_of_directory
from egad_jax.models.model import Params
from egad_jax.models.safetensors_io import read_directory

_LOG = logging.getLogger(__name__)
# Names of the parameters that have a row for each id.
_TABLES = ("embedding", "unembedding")


class Pretrained(NamedTuple):
  """A model read from files.

  Attributes:
    config: the model's architecture.
    params: `LazyArray`s in the layout of `Model.init`, read from the files whenever they are used;
      None for random values.
    license: the licence that the files state; None if they state none.
    name: name of the file, without its suffix, of the directory, or on the Hub.
    generation: end tokens and sampling settings that the files state.
    unread: keys, files and tensors that are neither read nor known to be harmless, such as
      "config.json: some_key".
  """

  config: DecoderConfig
  params: Params | None
  license: License | None
  name: str
  generation: GenerationSettings = NO_SETTINGS
  unread: tuple[str, ...] = ()


def load_pretrained(
  source: str, *, tokenizer_size: int | None = None, grow: bool = False
) -> Pretrained:
  """Reads and checks all of a model but its values; one warning names all that is not read.

  Args:
    source: a `*.gguf` file, a Hugging Face directory (config.json and safetensors) on a disk or in
      an object store,
      `hf:NAME[@REVISION]`, or `python:PACKAGE/FILE` for a file inside an installed Python package.
    tokenizer_size: number of ids of the tokenizer; rows of the embedding and the unembedding
      beyond it are padding and are set to zero. None keeps all rows.
    grow: whether tables with fewer rows than the tokenizer has ids get the mean of their rows for
      each further id, with a warning; otherwise such a model is refused.

  Raises:
    InputError: the source cannot be found, read or represented exactly, has fewer rows than the
      tokenizer has ids, or names an end token that the tokenizer lacks.
  """
  path = sources.resolve(source)
  try:
    read = _read(path)
  except OSError as error:
    raise InputError(
      f"{source} cannot be read: {error}. Check who may read it, or copy it again."
    ) from error
  if hub.is_on_hub(source):
    read = read._replace(name=hub.name_of(source))
  if grow and tokenizer_size is not None:
    read = _grown(source, read, tokenizer_size)
  if tokenizer_size is not None:
    read = _zero_padding(source, read, tokenizer_size)
    _check_ends(source, read.generation, tokenizer_size)
  if read.unread:
    _LOG.warning(
      "%s holds what is not read here: %s. If one of them changes what the model computes or "
      "writes, it is another model here.",
      source,
      "; ".join(read.unread),
    )
  return read


def _read(path: pathlib.Path) -> Pretrained:
  if path.is_dir():
    model = read_directory(path)
    return Pretrained(
      model.config,
      model.params,
      license_of_directory(path),
      path.resolve().name if is_local(path) else path.name,
      model.generation,
      model.unread,
    )
  file = read_gguf(path)
  generation = GenerationSettings(file.end_ids)
  return Pretrained(file.config, file.params, file.license, path.stem, generation, file.unread)


def _check_ends(source: str, generation: GenerationSettings, tokenizer_size: int) -> None:
  for index in generation.end_ids:
    if index >= tokenizer_size:
      raise InputError(
        f"{source}: its files name the end token {index}, but the tokenizer has the ids 0 to "
        f"{tokenizer_size - 1} only. Use the tokenizer that belongs to the model, or correct "
        "eos_token_id."
      )


def _grown(source: str, read: Pretrained, rows: int) -> Pretrained:
  """The model with at least this many rows in its tables; further rows are the mean of the others.

  The mean makes a new token neither likely nor unlikely, and its embedding an ordinary one.
  """
  lacking = rows - read.config.vocab_size
  if lacking <= 0 or read.params is None:
    return read
  _LOG.warning(
    "%s has %d rows of embedding for the %d ids of the tokenizer; the %d further ones begin as the "
    "mean of its rows.",
    source,
    read.config.vocab_size,
    rows,
    lacking,
  )
  tables = {
    name: with_rows(table, len(table), rows, _mean_row(table))
    for name in _TABLES
    if (table := read.params.get(name)) is not None
  }
  config = dataclasses.replace(read.config, vocab_size=rows)
  return read._replace(config=config, params=read.params | tables)


def _mean_row(table: LazyArray) -> np.ndarray:
  total = np.zeros(table.shape[1:], np.float64)
  for index in blocks(table.shape, table.dtype.itemsize, BLOCK_BYTES):
    for row in table[index]:
      total += row
  return (total / len(table)).astype(np.float32)


def _zero_padding(source: str, read: Pretrained, tokenizer_size: int) -> Pretrained:
  """The model with zeros in the rows that no id of the tokenizer has."""
  if read.params is None:
    return read
  tables = {}
  for name in _TABLES:
    table: LazyArray | None = read.params.get(name)
    if table is None:
      continue
    if len(table) < tokenizer_size:
      raise InputError(
        f"{source}: the {name} must have a row for each of the tokenizer's {tokenizer_size} ids; "
        f"it has {len(table)}. Use the tokenizer that belongs to the model."
      )
    tables[name] = with_rows(table, tokenizer_size, len(table), 0.0)
  return read._replace(params=read.params | tables)
