"""Granite: Llama's layers with multipliers of embeddings, attention, residuals and logits."""

from __future__ import annotations

from typing import Any

from egad_jax.models.config import DecoderConfig
from egad_jax.models.families.llama import TENSORS
from egad_jax.models.family import Family
from egad_jax.models.hf_config import ROTARY, HFConfig, config_keys, rotary_to_hf

_MULTIPLIERS = (
  "embedding_multiplier",
  "logits_scaling",
  "residual_multiplier",
  "attention_multiplier",
)


def _from_hf(hf: HFConfig) -> DecoderConfig:
  biases = hf.flag("attention_bias")
  config = hf.config(
    qkv_bias=biases,
    attention_bias=biases,
    mlp_bias=hf.flag("mlp_bias"),
    embedding_scale=hf.factor("embedding_multiplier"),
    logit_divisor=hf.factor("logits_scaling"),
    residual_multiplier=hf.factor("residual_multiplier"),
    query_scale=hf.number("attention_multiplier"),
  )
  return config


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  scale = config.query_scale
  return rotary_to_hf(config) | {
    "attention_bias": config.attention_bias,
    "attention_multiplier": config.head_dim**-0.5 if scale is None else scale,
    "embedding_multiplier": config.embedding_scale or 1.0,
    "logits_scaling": config.logit_divisor or 1.0,
    "mlp_bias": config.mlp_bias,
    "residual_multiplier": config.residual_multiplier or 1.0,
  }


FAMILY = Family(
  name="granite",
  title="Granite",
  architectures=("GraniteForCausalLM",),
  keys=config_keys(*ROTARY, *_MULTIPLIERS, "attention_bias", "mlp_bias"),
  defaults={
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    **dict.fromkeys(_MULTIPLIERS, 1.0),
  },
  config_from_hf=_from_hf,
  config_to_hf=_to_hf,
  tensors=TENSORS,
)
