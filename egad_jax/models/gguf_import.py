"""Reads Llama models from GGUF files and dequantizes them to float32.

Tensor names, metadata keys and block formats are those of the `gguf` package
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import itertools
import pathlib
from typing import Any, NamedTuple

import gguf
import numpy as np

from egad_jax.errors import InputError
from egad_jax.files.gguf_file import StoredTensor, Texts, open_gguf
from egad_jax.models import llama
from egad_jax.models.config import DecoderConfig, Llama3RopeScaling
from egad_jax.models.foreign_keys import (
  CORRECT,
  check_closed,
  is_one_of,
  positive_integer,
  positive_number,
  shown,
)
from egad_jax.models.generation_settings import check_end_ids
from egad_jax.models.key_tables import LLAMA_GGUF
from egad_jax.models.license import License, license_of_gguf
from egad_jax.models.model import Params
from egad_jax.models.rope_config import rope_from_factors

_ROPE_FACTORS = "rope_freqs.weight"
_ROPE_REMEDY = "Use a model with plain or llama3 rotary positions."
_PREFIX = "llama."
# Prefixes of the model's own keys, and of keys that describe the file, its quantization or the
# tokenizer, which has a reader of its own.
_KNOWN_PREFIXES = (_PREFIX, "general.", "tokenizer.", "split.", "quantize.")
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
    params: numpy float32 parameters in the layout of `Model.init`.
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
  """Reads a Llama model.

  Args:
    path: the GGUF file.

  Raises:
    InputError: the file is missing, truncated or not GGUF; its architecture cannot be represented
      exactly; or a tensor is missing, unexpected, of the wrong shape or not finite.
  """
  metadata, found = open_gguf(path)
  source = str(path)
  _check_kind(source, metadata)
  config = _config(source, metadata, found)
  shapes = {name: stored.shape for name, stored in found.items() if name != _ROPE_FACTORS}
  llama.check_tensors(source, config, lambda tensor: tensor.gguf, shapes)

  def read(tensor: llama.Tensor) -> np.ndarray:
    array = _dequantize(source, found[tensor.gguf])
    llama.check_finite(source, tensor.gguf, array)
    heads = {"query": config.num_heads, "key": config.num_kv_heads}.get(tensor.path[-1])
    return array if heads is None else unpermute(array, heads)

  return GGUFModel(
    config,
    llama.assemble(config, read),
    license_of_gguf(metadata),
    _end_ids(source, metadata, config.vocab_size),
    tuple(key for key in metadata if not key.startswith(_KNOWN_PREFIXES)),
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


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's permutation of the rows of query and key projections.

  Its rotary embedding rotates neighbouring values of a head; Hugging Face's rotates (i, i + half).

  Args:
    weight: `[heads * head_dim, dim]`.
    heads: number of attention heads.

  Returns:
    `[heads * head_dim, dim]` in Hugging Face's order.
  """
  rows, dim = weight.shape
  paired = weight.reshape(heads, rows // heads // 2, 2, dim)
  return paired.swapaxes(1, 2).reshape(rows, dim)


def _dequantize(source: str, stored: StoredTensor) -> np.ndarray:
  try:
    # Damaged scales may overflow; the caller refuses values that are not finite.
    with np.errstate(all="ignore"):
      return gguf.dequantize(stored.data, stored.kind)
  except NotImplementedError as error:
    raise InputError(
      f"{source}: tensor {stored.name} is stored as {stored.kind.name}, which cannot be "
      "dequantized."
    ) from error


def _check_kind(source: str, metadata: dict[str, Any]) -> None:
  """Refuses files that do not hold a whole Llama, and values that would make it another model."""
  kind = metadata.get("general.type", "model")
  if not is_one_of(kind, ("model",)):
    raise InputError(
      f"{source}: general.type must be 'model'; got {shown(kind)}, which is a part that is used "
      "with a model. Merge it into the model first, or give the model's own file."
    )
  parts = metadata.get("split.count", 0)
  if not is_one_of(parts, (0, 1)):
    raise InputError(
      f"{source} is one of {shown(parts)} parts (split.count). Join them first: "
      "llama-gguf-split --merge FIRST_PART OUTPUT.gguf."
    )
  architecture = _need(source, metadata, "general.architecture")
  if not (isinstance(architecture, str) and architecture == "llama"):
    raise InputError(
      f'{source}: general.architecture must be "llama"; got {shown(architecture)}. '
      "Other families are not supported."
    )
  own = {key: value for key, value in metadata.items() if key.startswith(_PREFIX)}
  LLAMA_GGUF.check(source, own)
  check_closed(source, LLAMA_GGUF.unknown(own), LLAMA_GGUF.remedy)


def _need(source: str, metadata: dict[str, Any], key: str) -> Any:
  if key not in metadata:
    raise InputError(
      f"{source}: expected the metadata key {key}; it has none. Convert the model again."
    )
  return metadata[key]


def _config(source: str, metadata: dict[str, Any], found: dict[str, StoredTensor]) -> DecoderConfig:
  def integer(key: str, default: int | None = None) -> int:
    value = _need(source, metadata, key) if default is None else metadata.get(key, default)
    return positive_integer(source, key, value)

  def number(key: str, value: Any) -> float:
    # Stored as float32, whose shortest decimal is the number that the model was configured with.
    return float(str(np.float32(positive_number(source, key, value))))

  heads, dim = integer("llama.attention.head_count"), integer("llama.embedding_length")
  head_dim = integer("llama.attention.key_length", dim // heads)
  if "token_embd.weight" not in found:
    raise InputError(f"{source} lacks tensors: token_embd.weight. Convert the model again.")
  rows = found["token_embd.weight"].shape[0]
  for key, expected in (
    ("llama.rope.dimension_count", head_dim),
    ("llama.attention.value_length", head_dim),
    ("llama.vocab_size", rows),
  ):
    if integer(key, expected) != expected:
      raise InputError(f"{source}: {key} must be {expected!r}; got {metadata[key]!r}. {CORRECT}")
  base, eps = "llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"
  theta = number(base, metadata.get(base, 10_000.0))
  return llama.checked_config(
    source,
    vocab_size=rows,
    dim=dim,
    num_layers=integer("llama.block_count"),
    num_heads=heads,
    num_kv_heads=integer("llama.attention.head_count_kv", heads),
    head_dim=head_dim,
    mlp_dim=integer("llama.feed_forward_length"),
    rope_theta=theta,
    rope_scaling=_rope_scaling(source, metadata, found.get(_ROPE_FACTORS), head_dim, theta),
    norm_eps=number(eps, _need(source, metadata, eps)),
    tie_embeddings="output.weight" not in found,
    max_seq_len=integer("llama.context_length", 2048),
  )


def _rope_scaling(
  source: str,
  metadata: dict[str, Any],
  stored: StoredTensor | None,
  head_dim: int,
  theta: float,
) -> Llama3RopeScaling | None:
  scaling = "llama.rope.scaling"
  kind = metadata.get(f"{scaling}.type", "linear")
  if not is_one_of(kind, ("none", "linear")):
    raise InputError(f"{source}: {scaling}.type must be 'none'; got {shown(kind)}. {_ROPE_REMEDY}")
  for key in (f"{scaling}.factor", "llama.rope.scale_linear"):
    # llama.cpp ignores the factor with type "none", and takes it as linear without a type.
    if kind != "none" and not is_one_of(metadata.get(key), (0, 1, None)):
      raise InputError(f"{source}: {key} must be 1; got {shown(metadata[key])}. {_ROPE_REMEDY}")
  original = f"{scaling}.original_context_length"
  if original in metadata:
    positive_integer(source, original, metadata[original])
  if stored is None:
    return None
  llama.check_shape(source, _ROPE_FACTORS, expected=(head_dim // 2,), got=stored.shape)
  factors = _dequantize(source, stored)
  llama.check_finite(source, _ROPE_FACTORS, factors)
  return rope_from_factors(
    f"{source}: {_ROPE_FACTORS}",
    factors,
    head_dim=head_dim,
    theta=theta,
    original_max_seq_len=metadata.get(original),
  )
