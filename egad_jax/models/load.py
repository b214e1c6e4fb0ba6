"""Pretrained models by source: a GGUF file, a Hugging Face directory, or a file in a package."""

from __future__ import annotations

import pathlib
import re
from typing import NamedTuple

import numpy as np

from egad_jax import sources
from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig
from egad_jax.models.gguf_import import read_gguf
from egad_jax.models.model import Params
from egad_jax.models.safetensors_io import read_directory

# Bytes of a model card that are looked at.
_MAX_FRONT_MATTER = 2**16


class Pretrained(NamedTuple):
  """A model read from files.

  Attributes:
    config: its architecture.
    params: numpy float32 in the layout of `Model.init`; None for a model of random values.
    license: what the files say about it, such as "apache-2.0"; None if nothing.
    name: of the file or directory.
  """

  config: DecoderConfig
  params: Params | None
  license: str | None
  name: str


def load_pretrained(source: str, *, tokenizer_size: int | None = None) -> Pretrained:
  """Reads a model of the Llama family.

  Args:
    source: a `*.gguf` file, a Hugging Face directory (config.json and safetensors), or
      `python:PACKAGE/FILE` for a file inside an installed Python package.
    tokenizer_size: number of ids of the tokenizer; rows of the embedding and the unembedding
      beyond it are padding and are set to zero. None keeps all rows.

  Raises:
    InputError: if the source cannot be found, read or represented exactly, or has fewer rows
      than the tokenizer has ids.
  """
  path = sources.resolve(source)
  if path.is_dir():
    config, params = read_directory(path)
    read = Pretrained(config, params, _readme_license(path), path.resolve().name)
  else:
    model = read_gguf(path)
    read = Pretrained(model.config, model.params, model.license, path.stem)
  if tokenizer_size is not None:
    _zero_padding(source, read.params or {}, tokenizer_size)
  return read


def _zero_padding(source: str, params: Params, tokenizer_size: int) -> None:
  for name in ("embedding", "unembedding"):
    table: np.ndarray | None = params.get(name)
    if table is None:
      continue
    if len(table) < tokenizer_size:
      raise InputError(
        f"{source}: the {name} must have a row for each of the tokenizer's {tokenizer_size} ids; "
        f"it has {len(table)}. Use the tokenizer that belongs to the model."
      )
    table[tokenizer_size:] = 0.0


def _readme_license(directory: pathlib.Path) -> str | None:
  """The `license:` of a model card's front matter."""
  readme = directory / "README.md"
  if not readme.is_file():
    return None
  with readme.open("rb") as file:
    text = file.read(_MAX_FRONT_MATTER).decode("utf-8", "replace")
  front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
  found = front and re.search(r"^license:\s*[\"']?([^\"'\s]+)", front[1], re.MULTILINE)
  return found[1] if found else None
