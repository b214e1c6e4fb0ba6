"""Qwen3: Qwen2's layers without biases, with norms of each head's queries and keys."""

from __future__ import annotations

from typing import Any

from egad_jax.models.config import DecoderConfig
from egad_jax.models.families import qwen2
from egad_jax.models.families.llama import TENSORS
from egad_jax.models.family import Family, GGUFFamily
from egad_jax.models.gguf_config import gguf_keys
from egad_jax.models.hf_config import ROTARY, HFConfig, config_keys, rotary_to_hf


def _from_hf(hf: HFConfig) -> DecoderConfig:
  biases = hf.flag("attention_bias")
  return hf.config(
    qk_norm=True, qkv_bias=biases, attention_bias=biases, pattern=qwen2.layers_from_hf(hf)
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  own = {"attention_bias": config.attention_bias}
  return rotary_to_hf(config) | qwen2.layers_to_hf(config) | own


FAMILY = Family(
  name="qwen3",
  title="Qwen3",
  architectures=("Qwen3ForCausalLM",),
  keys=config_keys(*ROTARY, *qwen2.WINDOW_KEYS, "attention_bias"),
  defaults=qwen2.DEFAULTS | {"head_dim": 128},
  config_from_hf=_from_hf,
  config_to_hf=_to_hf,
  tensors=TENSORS,
  gguf_names=("qwen3",),
  gguf=GGUFFamily(keys=gguf_keys(), config=lambda gguf: gguf.config(qk_norm=True)),
)
