"""Qwen3-MoE: Qwen3's attention, and a mixture of experts in place of every MLP."""

from __future__ import annotations

from typing import Any

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig, Experts, LayerKind
from egad_jax.models.families import qwen2
from egad_jax.models.families.llama import TENSORS
from egad_jax.models.family import Family
from egad_jax.models.hf_config import ROTARY, HFConfig, common_window, config_keys, rotary_to_hf
from egad_jax.models.layout import row

_MLP = "model.layers.{layer}.mlp"
_EXPERTS = (
  row("mlp/router", f"{_MLP}.gate"),
  *(
    row(f"mlp/{ours}", f"{_MLP}.experts.{{expert}}.{ours}_proj") for ours in ("gate", "up", "down")
  ),
)
# Names of the number of experts in transformers 4 and 5.
_COUNTS = ("num_experts", "num_local_experts")


def _from_hf(hf: HFConfig) -> DecoderConfig:
  counts = {hf.integer(key) for key in _COUNTS if hf.data.get(key) is not None} or {128}
  if len(counts) > 1:
    raise InputError(f"{hf.source}: num_experts and num_local_experts must agree; got {counts}.")
  biases = hf.flag("attention_bias")
  window = hf.window() if hf.flag("use_sliding_window") else None
  return hf.config(
    qk_norm=True,
    qkv_bias=biases,
    attention_bias=biases,
    pattern=(LayerKind(window=window),),
    experts=Experts(
      count=counts.pop(),
      chosen=hf.integer("num_experts_per_tok"),
      mlp_dim=hf.integer("moe_intermediate_size"),
      renormalize=hf.flag("norm_topk_prob"),
    ),
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  experts = config.experts
  if experts is None:
    raise InputError("a Qwen3-MoE cannot be exported without experts; got experts None.")
  window = common_window(config)
  return rotary_to_hf(config) | {
    "attention_bias": config.attention_bias,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": experts.mlp_dim,
    "norm_topk_prob": experts.renormalize,
    "num_experts": experts.count,
    "num_experts_per_tok": experts.chosen,
    "sliding_window": window,
    "use_sliding_window": window is not None,
  }


FAMILY = Family(
  name="qwen3_moe",
  title="Qwen3-MoE",
  architectures=("Qwen3MoeForCausalLM",),
  keys=config_keys(
    *ROTARY,
    *_COUNTS,
    "attention_bias",
    "moe_intermediate_size",
    "num_experts_per_tok",
    "norm_topk_prob",
    "sliding_window",
    "use_sliding_window",
  ),
  defaults=qwen2.DEFAULTS
  | {"num_key_value_heads": 4, "moe_intermediate_size": 768, "num_experts_per_tok": 8},
  config_from_hf=_from_hf,
  config_to_hf=_to_hf,
  tensors=(*(r for r in TENSORS if not r.ours[0].startswith("mlp/")), *_EXPERTS),
)
