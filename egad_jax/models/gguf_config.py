"""Metadata of GGUF that describe a model: the keys that families share, and a reader of them."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from egad_jax.errors import InputError
from egad_jax.files.gguf_file import StoredTensor
from egad_jax.models.checkpoint_checks import check_finite, check_shape
from egad_jax.models.config import DecoderConfig, LinearRopeScaling, RopeScaling
from egad_jax.models.foreign_keys import (
  CORRECT,
  Table,
  is_one_of,
  names,
  positive_integer,
  positive_number,
  shown,
)
from egad_jax.models.hf_config import checked_config
from egad_jax.models.rope_config import rope_from_factors

ROPE_FACTORS = "rope_freqs.weight"
_ROPE_REMEDY = "Use a model with plain, linear or llama3 rotary positions."
_REMEDY = (
  "That is another computation than the one that is run here, and the model would not be itself; "
  "use one without it."
)
_READ = names(
  """
  vocab_size context_length embedding_length block_count feed_forward_length attention.head_count
  attention.head_count_kv attention.key_length attention.value_length
  attention.layer_norm_rms_epsilon rope.dimension_count rope.freq_base rope.scaling.type
  rope.scaling.factor rope.scale_linear rope.scaling.original_context_length
  """
)
# These keys say how the file was made; its tensors have the same order of rows in any case.
_HARMLESS = frozenset({"tensor_data_layout", "source_hf_repo", "rope.scaling.finetuned"})
_NEUTRAL: dict[str, tuple[Any, ...]] = {
  "attention.sliding_window": (0,),
  "attention.sliding_window_pattern": (0,),
  "attention.layer_norm_epsilon": (),
  "attention.causal": (True,),
  "attention.scale": (0,),
  "attention.clamp_kqv": (0,),
  "attention.max_alibi_bias": (0,),
  "attention.temperature_scale": (0,),
  "attention.output_scale": (0, 1),
  "attn_logit_softcapping": (0,),
  "final_logit_softcapping": (0,),
  "logit_scale": (0, 1),
  "residual_scale": (0, 1),
  "embedding_scale": (0, 1),
  "use_parallel_residual": (False,),
  "pooling_type": (0,),
  "expert_count": (0,),
  "expert_used_count": (0,),
  "expert_feed_forward_length": (0,),
  "expert_shared_count": (0,),
  "leading_dense_block_count": (0,),
  "interleave_moe_layer_step": (0,),
  "nextn_predict_layers": (0,),
  "rope.scaling.attn_factor": (1,),
  "rope.scaling.yarn_log_multiplier": (0,),
  "rope.scaling.yarn_ext_factor": (),
  "rope.scaling.yarn_attn_factor": (),
  "rope.scaling.yarn_beta_fast": (),
  "rope.scaling.yarn_beta_slow": (),
  "rope.dimension_sections": (),
}


def gguf_keys(
  *read: str, neutral: Mapping[str, tuple[Any, ...]] = types.MappingProxyType({})
) -> Table:
  """The table of a family's metadata keys, without the prefix of its architecture.

  Args:
    *read: keys that the family reads besides those that every family reads.
    neutral: key -> values that mean the same as its absence, where the family departs from the
      rule for all families; see `Table`.
  """
  known = _READ | frozenset(read)
  merged = {key: values for key, values in (_NEUTRAL | dict(neutral)).items() if key not in known}
  return Table(read=known, harmless=_HARMLESS, neutral=merged, remedy=_REMEDY)


class GGUFConfig:
  """Reads metadata of one architecture; every method raises InputError for a wrong value."""

  def __init__(
    self,
    source: str,
    architecture: str,
    metadata: Mapping[str, Any],
    found: Mapping[str, StoredTensor],
  ) -> None:
    """Takes the header of a file.

    Args:
      source: name of the file, for messages.
      architecture: value of general.architecture, the prefix of the keys.
      metadata: all metadata.
      found: all tensors by name.
    """
    self.source, self._prefix = source, f"{architecture}."
    self._metadata, self._found = metadata, found

  def get(self, key: str) -> Any:
    """The value of a key without its prefix; None if it is absent."""
    return self._metadata.get(self._prefix + key)

  def need(self, key: str) -> Any:
    """The value of a key that must be there."""
    return need(self.source, self._metadata, self._prefix + key)

  def integer(self, key: str, default: int | None = None) -> int:
    """A positive integer; without `default` the key must be there."""
    value = self.get(key)
    if value is None:
      value = self.need(key) if default is None else default
    return positive_integer(self.source, self._prefix + key, value)

  def number(self, key: str, default: float | None = None) -> float:
    """A positive number; without `default` the key must be there."""
    value = self.get(key)
    if value is None:
      value = self.need(key) if default is None else default
    # Stored as float32, whose shortest decimal is the number that the model was configured with.
    return float(str(np.float32(positive_number(self.source, self._prefix + key, value))))

  def has(self, name: str) -> bool:
    """Whether the file has a tensor of this name."""
    return name in self._found

  def config(self, **fields: Any) -> DecoderConfig:
    """The architecture by the keys that all families share.

    Args:
      **fields: fields of `DecoderConfig` that the family has always or reads itself.
    """
    heads, dim = self.integer("attention.head_count"), self.integer("embedding_length")
    head_dim = self.integer("attention.key_length", dim // heads)
    if not self.has("token_embd.weight"):
      raise InputError(f"{self.source} lacks tensors: token_embd.weight. Convert the model again.")
    rows = self._found["token_embd.weight"].shape[0]
    for key, expected in (
      ("rope.dimension_count", head_dim),
      ("attention.value_length", head_dim),
      ("vocab_size", rows),
    ):
      if self.integer(key, expected) != expected:
        raise InputError(
          f"{self.source}: {self._prefix}{key} must be {expected!r}; got {self.get(key)!r}. "
          f"{CORRECT}"
        )
    theta = self.number("rope.freq_base", fields.pop("default_theta", 10_000.0))
    common = {
      "vocab_size": rows,
      "dim": dim,
      "num_layers": self.integer("block_count"),
      "num_heads": heads,
      "num_kv_heads": self.integer("attention.head_count_kv", heads),
      "head_dim": head_dim,
      "mlp_dim": self.integer("feed_forward_length"),
      "rope_theta": theta,
      "rope_scaling": self._rope_scaling(head_dim, theta),
      "norm_eps": self.number("attention.layer_norm_rms_epsilon"),
      "tie_embeddings": not self.has("output.weight"),
      "max_seq_len": self.integer("context_length", 2048),
    }
    return checked_config(self.source, **(common | fields))

  def _rope_scaling(self, head_dim: int, theta: float) -> RopeScaling | None:
    kind = self.get("rope.scaling.type")
    kind = "linear" if kind is None else kind
    if not is_one_of(kind, ("none", "linear")):
      raise InputError(
        f"{self.source}: {self._prefix}rope.scaling.type must be 'none' or 'linear'; got "
        f"{shown(kind)}. {_ROPE_REMEDY}"
      )
    # llama.cpp ignores the factor with type "none", and takes it as linear without a type.
    linear = None
    for key in ("rope.scaling.factor", "rope.scale_linear"):
      if kind != "none" and not is_one_of(self.get(key), (0, 1, None)):
        linear = linear or LinearRopeScaling(self.number(key))
    original = "rope.scaling.original_context_length"
    if self.get(original) is not None:
      self.integer(original)
    stored = self._found.get(ROPE_FACTORS)
    if stored is None:
      return linear
    if linear is not None:
      raise InputError(
        f"{self.source} has both a linear factor of rope scaling and {ROPE_FACTORS}; expected one "
        f"of them. {_ROPE_REMEDY}"
      )
    check_shape(self.source, ROPE_FACTORS, expected=(head_dim // 2,), got=stored.shape)
    factors = dequantize(self.source, stored)
    check_finite(self.source, ROPE_FACTORS, factors)
    return rope_from_factors(
      f"{self.source}: {ROPE_FACTORS}",
      factors,
      head_dim=head_dim,
      theta=theta,
      original_max_seq_len=self.get(original),
    )


def need(source: str, metadata: Mapping[str, Any], key: str) -> Any:
  """The value of a metadata key.

  Raises:
    InputError: it is absent.
  """
  if key not in metadata:
    raise InputError(
      f"{source}: expected the metadata key {key}; it has none. Convert the model again."
    )
  return metadata[key]


def dequantize(source: str, stored: StoredTensor) -> np.ndarray:
  """The float32 values of a tensor.

  Raises:
    InputError: they are stored in a way that the gguf package cannot read.
  """
  try:
    # Damaged scales may overflow; the caller refuses values that are not finite.
    with np.errstate(all="ignore"):
      return gguf.dequantize(stored.data, stored.kind)
  except NotImplementedError as error:
    raise InputError(
      f"{source}: tensor {stored.name} is stored as {stored.kind.name}, which cannot be "
      "dequantized."
    ) from error
