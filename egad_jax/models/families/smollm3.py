"""SmolLM3: Llama's layers, of which every fourth has no rotary positions."""

from __future__ import annotations

from typing import Any

from egad_jax.models.config import DecoderConfig, LayerKind
from egad_jax.models.families.llama import TENSORS
from egad_jax.models.family import Family
from egad_jax.models.hf_config import (
  ROTARY,
  HFConfig,
  common_window,
  config_keys,
  layer_types,
  pattern_of,
  rotary_to_hf,
)

_KEYS = config_keys(
  *ROTARY,
  "no_rope_layers",
  "no_rope_layer_interval",
  "attention_bias",
  "mlp_bias",
  "sliding_window",
  "use_sliding_window",
  "layer_types",
  # transformers' class does not read it, though the model's own file has 2.
  harmless=("pretraining_tp",),
)


def _from_hf(hf: HFConfig) -> DecoderConfig:
  count = hf.layers()
  # In this list 1 means that the layer has rotary positions, despite its name.
  rope = hf.layer_values("no_rope_layers", (0, 1), count)
  if rope is None:
    interval = hf.integer("no_rope_layer_interval")
    rope = [int((i + 1) % interval != 0) for i in range(count)]
  window = hf.window() if hf.flag("use_sliding_window") else None
  sliding = hf.sliding(window is not None and not turned for turned in rope)
  biases = hf.flag("attention_bias")
  return hf.config(
    qkv_bias=biases,
    attention_bias=biases,
    mlp_bias=hf.flag("mlp_bias"),
    pattern=pattern_of(
      LayerKind(window=window if local else None, rope=bool(turned))
      for local, turned in zip(sliding, rope, strict=True)
    ),
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  window = common_window(config)
  return rotary_to_hf(config) | {
    "attention_bias": config.attention_bias,
    "layer_types": layer_types(config),
    "mlp_bias": config.mlp_bias,
    "no_rope_layers": [int(config.kind(i).rope) for i in range(config.num_layers)],
    "sliding_window": window,
    "use_sliding_window": window is not None,
  }


FAMILY = Family(
  name="smollm3",
  title="SmolLM3",
  architectures=("SmolLM3ForCausalLM",),
  keys=_KEYS,
  defaults={
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "rope_theta": 2_000_000.0,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
  },
  config_from_hf=_from_hf,
  config_to_hf=_to_hf,
  tensors=TENSORS,
)
