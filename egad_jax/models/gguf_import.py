"""Reads models from GGUF files and dequantizes them to float32.

Tensor names, metadata keys and block formats are those of the `gguf` package
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from egad_jax.errors import InputError
from egad_jax.files.gguf_file import Texts
from egad_jax.files.gguf_parts import open_parts
from egad_jax.lazy_arrays import Slices
from egad_jax.models import layout
from egad_jax.models.checkpoint_checks import check_depth, check_finite, check_tensors
from egad_jax.models.config import DecoderConfig
from egad_jax.models.family import Family, families
from egad_jax.models.foreign_keys import check_closed, is_one_of, shown
from egad_jax.models.generation_settings import check_end_ids
from egad_jax.models.gguf_config import ROPE_FACTORS, GGUFConfig, dequantize, need
from egad_jax.models.layout import Tensor
from egad_jax.models.license import License, license_of_gguf
from egad_jax.models.model import Params

# Prefixes of keys that describe the file, its quantization or the tokenizer, which has a reader of
# its own.
_KNOWN_PREFIXES = ("general.", "tokenizer.", "split.", "quantize.")
# Texts of end tokens. Files older than the keys of `_END_KEYS` rely on them, and llama.cpp always
# ends at them.
_END_TEXTS = frozenset(
  {
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
  }
)
_END_KEYS = tuple(f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom"))


class GGUFModel(NamedTuple):
  """A model read from a GGUF file, without its tokenizer.

  Attributes:
    config: the model's architecture.
    params: parameters in the layout of `Model.init`, not read yet.
    license: the licence that the file states; None if it states none.
    end_ids: ids that end a text or a turn; () if the file names none.
    unread: metadata keys that are neither read nor known to be harmless.
  """

  config: DecoderConfig
  params: Params
  license: License | None
  end_ids: tuple[int, ...]
  unread: tuple[str, ...]


def read_gguf(path: pathlib.Path) -> GGUFModel:
  """Reads the header of a model; values are read and dequantized when the parameters are.

  Args:
    path: the GGUF file, or the first of its parts, which are beside it.

  Raises:
    InputError: a file is missing, truncated or not GGUF; its architecture cannot be represented
      exactly; or a tensor is missing, unexpected or of the wrong shape.
  """
  source = str(path)
  metadata, found = open_parts(path)
  architecture, family = _family(source, metadata)
  assert family.gguf is not None
  config = family.gguf.config(GGUFConfig(source, architecture, metadata, found))
  config = dataclasses.replace(config, family=family.name)
  shapes = {name: stored.shape for name, stored in found.items() if name != ROPE_FACTORS}
  check_depth(source, config, len(shapes))
  tensors = layout.tensors(family.tensors, config)
  check_tensors(source, family.title, tensors, lambda tensor: tensor.gguf or "", shapes)
  transforms = family.gguf.transforms

  def read(tensor: Tensor, slices: Slices) -> np.ndarray:
    stored, transform = found[tensor.gguf or ""], transforms.get(tensor.first)
    # A transform may move rows; without one, only those that are wanted are dequantized.
    if transform is None and len(stored.shape) > 1:
      first = slices[0]
      stored = stored.rows(first.start, first.stop)
      slices = (slice(0, first.stop - first.start), *slices[1:])
    array = dequantize(source, stored)
    check_finite(source, stored.name, array)
    return array[slices] if transform is None else transform(config, array)[slices]

  known = (f"{architecture}.", *_KNOWN_PREFIXES)
  return GGUFModel(
    config,
    layout.assemble(tensors, read),
    license_of_gguf(metadata),
    _end_ids(source, metadata, config.vocab_size),
    tuple(key for key in metadata if not key.startswith(known)),
  )


def _end_ids(source: str, metadata: dict[str, Any], vocab_size: int) -> tuple[int, ...]:
  """The ids that end a text, as llama.cpp finds them: by keys and by the texts of tokens."""
  ends: tuple[int, ...] = ()
  for key in _END_KEYS:
    ends += check_end_ids(f"{source}: {key}", metadata.get(key), vocab_size)
  tokens = metadata.get("tokenizer.ggml.tokens")
  if ends and isinstance(tokens, Texts):
    rows = itertools.islice(enumerate(tokens), vocab_size)
    ends += tuple(index for index, text in rows if text in _END_TEXTS)
  return tuple(dict.fromkeys(ends))


def _family(source: str, metadata: Mapping[str, Any]) -> tuple[str, Family]:
  """The architecture's name and its family; refuses files that do not hold a whole model of one."""
  kind = metadata.get("general.type", "model")
  if not is_one_of(kind, ("model",)):
    raise InputError(
      f"{source}: general.type must be 'model'; got {shown(kind)}, which is a part that is used "
      "with a model. Merge it into the model first, or give the model's own file."
    )
  architecture = need(source, metadata, "general.architecture")
  known = {name: family for family in families().values() for name in family.gguf_names}
  family = known.get(architecture) if isinstance(architecture, str) else None
  if family is None or family.gguf is None:
    raise InputError(
      f"{source}: general.architecture must be one of {', '.join(sorted(known))}; got "
      f"{shown(architecture)}. Other families are not read from GGUF; use the model's Hugging Face "
      "directory if its family is supported there."
    )
  prefix = f"{architecture}."
  own = {key: value for key, value in metadata.items() if key.startswith(prefix)}
  keys = family.gguf.keys.under(prefix)
  keys.check(source, own)
  check_closed(source, keys.unknown(own), keys.remedy)
  return architecture, family
