"""Llama models from GGUF files, dequantized to float32.

Tensor names, metadata keys and block formats are those of the `gguf` package
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import gguf
import numpy as np

from egad_jax.errors import InputError
from egad_jax.gguf_file import StoredTensor, open_gguf
from egad_jax.models import llama, rotary
from egad_jax.models.config import DecoderConfig, Llama3RopeScaling
from egad_jax.models.model import Params

_ROPE_FACTORS = "rope_freqs.weight"
_MAX_ROPE_ERROR = 1e-4


class GGUFModel(NamedTuple):
  """What a GGUF file says about a model, apart from its tokenizer."""

  config: DecoderConfig
  params: Params
  license: str | None


def read_gguf(path: pathlib.Path) -> GGUFModel:
  """Reads a Llama model.

  Args:
    path: the file.

  Raises:
    InputError: if the file is missing, truncated or not GGUF, if its architecture cannot be
      represented exactly, or if a tensor is missing, unexpected or of the wrong shape.
  """
  metadata, found = open_gguf(path)
  source = str(path)
  config = _config(source, metadata, found)
  shapes = {name: stored.shape for name, stored in found.items() if name != _ROPE_FACTORS}
  llama.check_tensors(source, config, lambda tensor: tensor.gguf, shapes)

  def read(tensor: llama.Tensor) -> np.ndarray:
    array = _dequantize(source, found[tensor.gguf])
    llama.check_finite(source, tensor.gguf, array)
    heads = {"query": config.num_heads, "key": config.num_kv_heads}.get(tensor.path[-1])
    return array if heads is None else unpermute(array, heads)

  params = llama.assemble(config, read)
  license_name = metadata.get("general.license")
  return GGUFModel(config, params, license_name if isinstance(license_name, str) else None)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Undoes the order that llama.cpp gives the rows of query and key projections.

  Its rotary embedding turns neighbouring pairs of a head, Hugging Face's turns (i, i + half).

  Args:
    weight: `[heads * head_dim, dim]`.
    heads: number of heads.
  """
  rows, dim = weight.shape
  paired = weight.reshape(heads, rows // heads // 2, 2, dim)
  return paired.swapaxes(1, 2).reshape(rows, dim)


def _dequantize(source: str, stored: StoredTensor) -> np.ndarray:
  try:
    # Damaged scales may overflow; what is not finite is refused where the values are used.
    with np.errstate(all="ignore"):
      return gguf.dequantize(stored.data, stored.kind)
  except NotImplementedError as error:
    raise InputError(
      f"{source}: tensor {stored.name} is stored as {stored.kind.name}, which cannot be "
      "dequantized."
    ) from error


def _config(source: str, metadata: dict[str, Any], found: dict[str, StoredTensor]) -> DecoderConfig:
  def need(key: str) -> Any:
    if key not in metadata:
      raise InputError(f"{source}: expected the metadata key {key}; it has none.")
    return metadata[key]

  def integer(key: str, default: int | None = None) -> int:
    value = need(key) if default is None else metadata.get(key, default)
    return llama.positive_integer(source, key, value)

  def number(key: str, value: Any) -> float:
    # Stored as float32: its shortest decimal is what the model was configured with.
    return float(str(np.float32(llama.positive_number(source, key, value))))

  architecture = need("general.architecture")
  if architecture != "llama":
    raise InputError(
      f'{source}: general.architecture must be "llama"; got "{architecture}". '
      "Other families are not supported."
    )
  heads, dim = integer("llama.attention.head_count"), integer("llama.embedding_length")
  head_dim = integer("llama.attention.key_length", dim // heads)
  for key, allowed in (
    ("llama.rope.dimension_count", head_dim),
    ("llama.attention.value_length", head_dim),
    ("llama.rope.scaling.type", "none"),
    ("llama.expert_count", 0),
  ):
    got = metadata.get(key, allowed)
    if got != allowed:
      raise InputError(f"{source}: {key} must be {allowed!r}; got {got!r}.")
  if "token_embd.weight" not in found:
    raise InputError(f"{source} lacks tensors: token_embd.weight.")
  base, eps = "llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"
  theta = number(base, metadata.get(base, 10_000.0))
  return llama.checked_config(
    source,
    vocab_size=found["token_embd.weight"].shape[0],
    dim=dim,
    num_layers=integer("llama.block_count"),
    num_heads=heads,
    num_kv_heads=integer("llama.attention.head_count_kv", heads),
    head_dim=head_dim,
    mlp_dim=integer("llama.feed_forward_length"),
    rope_theta=theta,
    rope_scaling=_rope_scaling(source, found.get(_ROPE_FACTORS), head_dim, theta),
    norm_eps=number(eps, need(eps)),
    tie_embeddings="output.weight" not in found,
    max_seq_len=integer("llama.context_length", 2048),
  )


def _rope_scaling(
  source: str, stored: StoredTensor | None, head_dim: int, theta: float
) -> Llama3RopeScaling | None:
  """Recognises Llama 3's scaling in the factors that llama.cpp stores in its place."""
  if stored is None:
    return None
  llama.check_shape(source, _ROPE_FACTORS, expected=(head_dim // 2,), got=stored.shape)
  factors = _dequantize(source, stored)
  llama.check_finite(source, _ROPE_FACTORS, factors)
  scaling = Llama3RopeScaling(factor=float(factors.max()))
  plain = rotary.frequencies(head_dim, theta=theta).astype(np.float64)
  wanted = rotary.scaling_factors(plain, scaling)
  if not np.allclose(factors, wanted, rtol=_MAX_ROPE_ERROR):
    raise InputError(
      f"{source}: {_ROPE_FACTORS} must be the factors of Llama 3's rope scaling; they differ by "
      f"up to {np.max(np.abs(factors / wanted - 1)):.2g} of their value."
    )
  return scaling
