"""Llama 2 and 3 and SmolLM2: pre-norm decoders with rotary positions and gated SiLU MLPs."""

from __future__ import annotations

from typing import Any

import numpy as np

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig
from egad_jax.models.family import Family, GGUFFamily
from egad_jax.models.foreign_keys import shown
from egad_jax.models.gguf_config import GGUFConfig, gguf_keys
from egad_jax.models.hf_config import FULL, ROTARY, HFConfig, config_keys, rotary_to_hf
from egad_jax.models.layout import row

KEYS = config_keys(
  *ROTARY, "layer_types", "sliding_window", "use_sliding_window", "attention_bias", "mlp_bias"
)
DEFAULTS = {
  "rms_norm_eps": 1e-6,
  "max_position_embeddings": 2048,
  "tie_word_embeddings": False,
}
# The tensors that most families share, by the names that Llama gave them.
TENSORS = (
  row("embedding", "model.embed_tokens", "token_embd"),
  row("final_norm/scale", "model.norm", "output_norm"),
  row("unembedding", "lm_head", "output"),
  *(
    row(ours, f"model.layers.{{layer}}.{hf}", f"blk.{{layer}}.{gguf}")
    for ours, hf, gguf in (
      ("attention/query", "self_attn.q_proj", "attn_q"),
      ("attention/key", "self_attn.k_proj", "attn_k"),
      ("attention/value", "self_attn.v_proj", "attn_v"),
      ("attention/output", "self_attn.o_proj", "attn_output"),
      ("attention/query_bias", "self_attn.q_proj", "attn_q"),
      ("attention/key_bias", "self_attn.k_proj", "attn_k"),
      ("attention/value_bias", "self_attn.v_proj", "attn_v"),
      ("attention/output_bias", "self_attn.o_proj", "attn_output"),
      ("attention/query_norm/scale", "self_attn.q_norm", "attn_q_norm"),
      ("attention/key_norm/scale", "self_attn.k_norm", "attn_k_norm"),
      ("mlp/gate", "mlp.gate_proj", "ffn_gate"),
      ("mlp/up", "mlp.up_proj", "ffn_up"),
      ("mlp/down", "mlp.down_proj", "ffn_down"),
      ("mlp/gate_bias", "mlp.gate_proj", "ffn_gate"),
      ("mlp/up_bias", "mlp.up_proj", "ffn_up"),
      ("mlp/down_bias", "mlp.down_proj", "ffn_down"),
      ("attention_norm/scale", "input_layernorm", "attn_norm"),
      ("mlp_norm/scale", "post_attention_layernorm", "ffn_norm"),
    )
  ),
)


def _from_hf(hf: HFConfig) -> DecoderConfig:
  kinds = hf.data.get("layer_types")
  if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - {FULL}):
    raise InputError(
      f"{hf.source}: layer_types must all be {FULL!r}; got {shown(kinds)}. {KEYS.remedy}"
    )
  # A window as long as the context hides nothing.
  window, used = hf.data.get("sliding_window"), hf.data.get("use_sliding_window")
  if window is not None and used is not False:
    reach = hf.get("max_position_embeddings")
    if not (isinstance(window, int) and isinstance(reach, int) and window >= reach > 0):
      raise InputError(
        f"{hf.source}: sliding_window must be absent or reach over all positions; got "
        f"{shown(window)}. {KEYS.remedy}"
      )
  elif used:
    raise InputError(f"{hf.source}: use_sliding_window must be false. {KEYS.remedy}")
  biases = hf.flag("attention_bias")
  return hf.config(qkv_bias=biases, attention_bias=biases, mlp_bias=hf.flag("mlp_bias"))


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  return rotary_to_hf(config) | {
    "attention_bias": config.attention_bias,
    "attention_dropout": 0.0,
    "mlp_bias": config.mlp_bias,
    "pretraining_tp": 1,
  }


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """Undoes llama.cpp's permutation of the rows of query and key projections.

  Its rotary embedding rotates neighbouring values of a head; Hugging Face's rotates (i, i + half).

  Args:
    weight: `[heads * head_dim, ...]`.
    heads: number of attention heads.

  Returns:
    The same shape in Hugging Face's order.
  """
  paired = weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1)
  return paired.swapaxes(1, 2).reshape(weight.shape)


def _from_gguf(gguf: GGUFConfig) -> DecoderConfig:
  return gguf.config()


FAMILY = Family(
  name="llama",
  title="Llama",
  # The first conversions of Llama used the second spelling.
  architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
  keys=KEYS,
  defaults=DEFAULTS,
  config_from_hf=_from_hf,
  config_to_hf=_to_hf,
  tensors=TENSORS,
  # Files of Mistral 7B say llama too: llama.cpp runs them as one.
  gguf_names=("llama",),
  gguf=GGUFFamily(
    keys=gguf_keys(),
    config=_from_gguf,
    transforms={
      "attention/query": lambda config, array: unpermute(array, config.num_heads),
      "attention/key": lambda config, array: unpermute(array, config.num_kv_heads),
    },
  ),
)
