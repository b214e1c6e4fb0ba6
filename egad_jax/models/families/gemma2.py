"""Gemma 2: soft caps, alternating windows, norms before and after, scaled embeddings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from egad_jax.models.config import DecoderConfig, LayerKind
from egad_jax.models.families.llama import TENSORS as LLAMA_TENSORS
from egad_jax.models.family import Family, GGUFFamily
from egad_jax.models.gguf_config import GGUFConfig, gguf_keys
from egad_jax.models.hf_config import (
  ROTARY,
  HFConfig,
  common_window,
  config_keys,
  hf_activation,
  layer_types,
  pattern_of,
  query_scalar,
  rotary_to_hf,
)
from egad_jax.models.layout import row

KEYS = (
  "hidden_activation",
  "attention_bias",
  "query_pre_attn_scalar",
  "sliding_window",
  "layer_types",
  "final_logit_softcapping",
)
_CAP = "attn_logit_softcapping"
# Older files have both names of the activation; transformers reads hidden_activation only.
UNREAD = ("hidden_act",)
DEFAULTS = {
  "rms_norm_eps": 1e-6,
  "max_position_embeddings": 8192,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "tie_word_embeddings": True,
  "hidden_activation": "gelu_pytorch_tanh",
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "final_logit_softcapping": 30.0,
  _CAP: 50.0,
}
_NORMS = ("attention_norm/scale", "mlp_norm/scale")
TENSORS = (
  *(r for r in LLAMA_TENSORS if r.ours[0] not in _NORMS),
  *(
    row(f"{ours}/scale", f"model.layers.{{layer}}.{hf}", f"blk.{{layer}}.{gguf}")
    for ours, hf, gguf in (
      ("attention_norm", "input_layernorm", "attn_norm"),
      ("attention_post_norm", "post_attention_layernorm", "post_attention_norm"),
      ("mlp_norm", "pre_feedforward_layernorm", "ffn_norm"),
      ("mlp_post_norm", "post_feedforward_layernorm", "post_ffw_norm"),
    )
  ),
)
# GGUF holds the whole scale of a norm, Hugging Face's files and our parameters hold it less 1.
TRANSFORMS = {
  r.ours[0]: lambda config, array: array - np.float32(1)
  for r in TENSORS
  if r.ours[0].endswith("norm/scale")
}


def fields(dim: int) -> dict[str, Any]:
  """The fields of the architecture that all Gemmas of this width have."""
  return {
    "activation": "gelu_tanh",
    "norm_offset": 1.0,
    "post_norms": True,
    "embedding_scale": math.sqrt(dim),
  }


def fields_from_hf(hf: HFConfig) -> dict[str, Any]:
  """The fields that Gemma 2 and 3 read from the same keys."""
  biases = hf.flag("attention_bias")
  return fields(hf.integer("hidden_size")) | {
    "activation": hf.activation("hidden_activation"),
    "qkv_bias": biases,
    "attention_bias": biases,
    "query_scale": hf.query_scale("query_pre_attn_scalar"),
    "logit_soft_cap": hf.number_or_none("final_logit_softcapping"),
  }


def to_hf(config: DecoderConfig) -> dict[str, Any]:
  """The keys that Gemma 2 and 3 share."""
  shared = rotary_to_hf(config)
  del shared["hidden_act"]
  window = common_window(config)
  return shared | {
    "attention_bias": config.attention_bias,
    _CAP: config.attention_soft_cap,
    "final_logit_softcapping": config.logit_soft_cap,
    "hidden_activation": hf_activation(config),
    "layer_types": layer_types(config),
    "query_pre_attn_scalar": query_scalar(config),
    "sliding_window": 4096 if window is None else window,
  }


def gguf_query_scale(gguf: GGUFConfig, largest: int) -> float | None:
  """`DecoderConfig.query_scale`, which GGUF leaves to the program.

  Args:
    gguf: reader of the metadata.
    largest: number of layers of the 27B model, the only one that does not scale by its head_dim.
  """
  if gguf.integer("block_count") != largest:
    return None
  return (gguf.integer("embedding_length") / gguf.integer("attention.head_count")) ** -0.5


def _from_hf(hf: HFConfig) -> DecoderConfig:
  sliding = hf.sliding(i % 2 == 0 for i in range(hf.layers()))
  window = hf.integer("sliding_window")
  pattern = pattern_of(LayerKind(window=window if local else None) for local in sliding)
  cap = hf.number_or_none(_CAP)
  return hf.config(pattern=pattern, attention_soft_cap=cap, **fields_from_hf(hf))


def _from_gguf(gguf: GGUFConfig) -> DecoderConfig:
  return gguf.config(
    pattern=(LayerKind(window=gguf.integer("attention.sliding_window", 4096)), LayerKind()),
    query_scale=gguf_query_scale(gguf, 46),
    attention_soft_cap=gguf.number("attn_logit_softcapping", 50.0),
    logit_soft_cap=gguf.number("final_logit_softcapping", 30.0),
    **fields(gguf.integer("embedding_length")),
  )


FAMILY = Family(
  name="gemma2",
  title="Gemma 2",
  architectures=("Gemma2ForCausalLM",),
  keys=config_keys(*ROTARY, *KEYS, _CAP, harmless=UNREAD),
  defaults=DEFAULTS,
  config_from_hf=_from_hf,
  config_to_hf=to_hf,
  tensors=TENSORS,
  gguf_names=("gemma2",),
  gguf=GGUFFamily(
    keys=gguf_keys("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"),
    config=_from_gguf,
    transforms=TRANSFORMS,
  ),
)
