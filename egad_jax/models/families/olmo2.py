"""OLMo 2: norms after attention and MLP only, and of all heads' queries and keys together."""

from __future__ import annotations

from typing import Any

from egad_jax.models.config import DecoderConfig
from egad_jax.models.families.llama import TENSORS
from egad_jax.models.family import Family
from egad_jax.models.hf_config import ROTARY, HFConfig, config_keys, rotary_to_hf
from egad_jax.models.layout import row

_NORMS = (
  row("attention_post_norm/scale", "model.layers.{layer}.post_attention_layernorm"),
  row("mlp_post_norm/scale", "model.layers.{layer}.post_feedforward_layernorm"),
)


def _from_hf(hf: HFConfig) -> DecoderConfig:
  biases = hf.flag("attention_bias")
  return hf.config(
    qkv_bias=biases,
    attention_bias=biases,
    pre_norms=False,
    post_norms=True,
    qk_norm=True,
    qk_norm_over_heads=True,
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return rotary_to_hf(config) | {"attention_bias": config.attention_bias}


FAMILY = Family(
  name="olmo2",
  title="OLMo 2",
  architectures=("Olmo2ForCausalLM",),
  keys=config_keys(*ROTARY, "attention_bias"),
  defaults={
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
  },
  config_from_hf=_from_hf,
  config_to_hf=_to_hf,
  tensors=(*TENSORS, *_NORMS),
)
