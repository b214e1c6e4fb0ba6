"""Mistral: Llama's layers, all with one window or none.

Mistral's models in GGUF say that they are Llamas, and `llama` reads them.
"""

from __future__ import annotations

from egad_jax.models.config import LayerKind
from egad_jax.models.families.llama import TENSORS
from egad_jax.models.family import Family
from egad_jax.models.hf_config import ROTARY, common_window, config_keys, rotary_to_hf

FAMILY = Family(
  name="mistral",
  title="Mistral",
  architectures=("MistralForCausalLM",),
  keys=config_keys(*ROTARY, "sliding_window"),
  defaults={
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096 * 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
  },
  config_from_hf=lambda hf: hf.config(pattern=(LayerKind(window=hf.window()),)),
  config_to_hf=lambda config: rotary_to_hf(config) | {"sliding_window": common_window(config)},
  tensors=TENSORS,
)
