"""Phi-3: Llama's layers with fused projections. Its longrope scaling is refused by name."""

from __future__ import annotations

from egad_jax.models.config import LayerKind
from egad_jax.models.families.llama import TENSORS
from egad_jax.models.family import Family
from egad_jax.models.hf_config import ROTARY, common_window, config_keys, rotary_to_hf
from egad_jax.models.layout import row

_LAYER = "model.layers.{layer}"
_FUSED = (
  row("attention/query attention/key attention/value", f"{_LAYER}.self_attn.qkv_proj"),
  row("mlp/gate mlp/up", f"{_LAYER}.mlp.gate_up_proj"),
)
_PARTS = {path for r in _FUSED for path in r.ours}

FAMILY = Family(
  name="phi3",
  title="Phi-3",
  architectures=("Phi3ForCausalLM",),
  keys=config_keys(*ROTARY, "sliding_window"),
  defaults={
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
  },
  config_from_hf=lambda hf: hf.config(pattern=(LayerKind(window=hf.window()),)),
  config_to_hf=lambda config: rotary_to_hf(config) | {"sliding_window": common_window(config)},
  tensors=(*(r for r in TENSORS if r.ours[0] not in _PARTS), *_FUSED),
  own_code=("configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"),
)
