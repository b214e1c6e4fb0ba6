"""Qwen2 and Qwen2.5: biases of queries, keys and values, and windows from some depth on."""

from __future__ import annotations

from typing import Any

from egad_jax.models.config import DecoderConfig, LayerKind
from egad_jax.models.families.llama import TENSORS
from egad_jax.models.family import Family, GGUFFamily
from egad_jax.models.gguf_config import gguf_keys
from egad_jax.models.hf_config import (
  ROTARY,
  HFConfig,
  common_window,
  config_keys,
  layer_types,
  pattern_of,
  rotary_to_hf,
)

WINDOW_KEYS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
DEFAULTS = {
  "rms_norm_eps": 1e-6,
  "max_position_embeddings": 32768,
  "num_key_value_heads": 32,
  "tie_word_embeddings": False,
  "sliding_window": 4096,
  "max_window_layers": 28,
}


def layers_from_hf(hf: HFConfig) -> tuple[LayerKind, ...]:
  """The pattern of a Qwen: the layers from max_window_layers on have a window, if any has."""
  window = hf.window() if hf.flag("use_sliding_window") else None
  first, count = hf.count("max_window_layers"), hf.layers()
  sliding = hf.sliding(window is not None and i >= first for i in range(count))
  return pattern_of(LayerKind(window=window if local else None) for local in sliding)


def layers_to_hf(config: DecoderConfig) -> dict[str, Any]:
  """The keys that `layers_from_hf` reads."""
  kinds = layer_types(config)
  local = [i for i, kind in enumerate(kinds) if kind != "full_attention"]
  window = common_window(config)
  return {
    "layer_types": kinds,
    "max_window_layers": local[0] if local else config.num_layers,
    "sliding_window": window,
    "use_sliding_window": window is not None,
  }


FAMILY = Family(
  name="qwen2",
  title="Qwen2",
  architectures=("Qwen2ForCausalLM",),
  keys=config_keys(*ROTARY, *WINDOW_KEYS),
  defaults=DEFAULTS,
  config_from_hf=lambda hf: hf.config(qkv_bias=True, pattern=layers_from_hf(hf)),
  config_to_hf=lambda config: rotary_to_hf(config) | layers_to_hf(config),
  tensors=TENSORS,
  gguf_names=("qwen2",),
  gguf=GGUFFamily(keys=gguf_keys(), config=lambda gguf: gguf.config(qkv_bias=True)),
)
