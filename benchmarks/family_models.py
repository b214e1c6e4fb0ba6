"""One published model of each family, by the keys of its config.json that a program depends on."""

from __future__ import annotations

from typing import Any


def _sizes(
  dim: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
  return {
    "hidden_size": dim,
    "intermediate_size": mlp,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "vocab_size": vocab,
  } | more


def _llama3_scaling(factor: float) -> dict[str, Any]:
  return {
    "rope_type": "llama3",
    "factor": factor,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }


# Value of model_type -> (name on the Hub, the other keys).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
  "llama": (
    "meta-llama/Llama-3.2-1B",
    _sizes(
      2048,
      8192,
      16,
      32,
      8,
      128256,
      head_dim=64,
      max_position_embeddings=131072,
      rope_scaling=_llama3_scaling(32.0),
      rope_theta=500000.0,
      tie_word_embeddings=True,
    ),
  ),
  "mistral": (
    "mistralai/Mistral-7B-v0.1",
    _sizes(4096, 14336, 32, 32, 8, 32000, max_position_embeddings=32768, sliding_window=4096),
  ),
  "qwen2": (
    "Qwen/Qwen2.5-1.5B",
    _sizes(
      1536,
      8960,
      28,
      12,
      2,
      151936,
      max_position_embeddings=131072,
      rms_norm_eps=1e-6,
      rope_theta=1000000.0,
      tie_word_embeddings=True,
    ),
  ),
  "qwen3": (
    "Qwen/Qwen3-1.7B",
    _sizes(
      2048,
      6144,
      28,
      16,
      8,
      151936,
      head_dim=128,
      max_position_embeddings=40960,
      rms_norm_eps=1e-6,
      rope_theta=1000000.0,
      tie_word_embeddings=True,
    ),
  ),
  "qwen3_moe": (
    "Qwen/Qwen3-30B-A3B",
    _sizes(
      2048,
      6144,
      48,
      32,
      4,
      151936,
      head_dim=128,
      max_position_embeddings=40960,
      moe_intermediate_size=768,
      norm_topk_prob=True,
      num_experts=128,
      num_experts_per_tok=8,
      rms_norm_eps=1e-6,
      rope_theta=1000000.0,
      tie_word_embeddings=False,
    ),
  ),
  "smollm3": (
    "HuggingFaceTB/SmolLM3-3B",
    _sizes(
      2048,
      11008,
      36,
      16,
      4,
      128256,
      max_position_embeddings=65536,
      no_rope_layers=[1, 1, 1, 0] * 9,
      rms_norm_eps=1e-6,
      rope_theta=5000000.0,
      tie_word_embeddings=True,
    ),
  ),
  "gemma2": (
    "google/gemma-2-2b",
    _sizes(
      2304,
      9216,
      26,
      8,
      4,
      256000,
      attn_logit_softcapping=50.0,
      final_logit_softcapping=30.0,
      head_dim=256,
      max_position_embeddings=8192,
      query_pre_attn_scalar=256,
      rms_norm_eps=1e-6,
      sliding_window=4096,
    ),
  ),
  "gemma3_text": (
    "google/gemma-3-1b-pt",
    _sizes(
      1152,
      6912,
      26,
      4,
      1,
      262144,
      head_dim=256,
      max_position_embeddings=32768,
      query_pre_attn_scalar=256,
      rms_norm_eps=1e-6,
      rope_local_base_freq=10000,
      rope_theta=1000000,
      sliding_window=512,
      sliding_window_pattern=6,
    ),
  ),
  "gpt2": (
    "openai-community/gpt2",
    {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
  ),
  "phi3": (
    "microsoft/Phi-3-mini-4k-instruct",
    _sizes(
      3072,
      8192,
      32,
      32,
      32,
      32064,
      max_position_embeddings=4096,
      original_max_position_embeddings=4096,
      sliding_window=2047,
      pad_token_id=32000,
    ),
  ),
  "olmo2": (
    "allenai/OLMo-2-0425-1B",
    _sizes(
      2048,
      8192,
      16,
      16,
      16,
      100352,
      max_position_embeddings=4096,
      rms_norm_eps=1e-6,
      rope_theta=500000,
      tie_word_embeddings=False,
    ),
  ),
  "granite": (
    "ibm-granite/granite-3.1-2b-base",
    _sizes(
      2048,
      8192,
      40,
      32,
      8,
      49155,
      attention_multiplier=0.015625,
      embedding_multiplier=12.0,
      logits_scaling=8.0,
      max_position_embeddings=131072,
      residual_multiplier=0.22,
      rms_norm_eps=1e-5,
      rope_theta=5000000.0,
      tie_word_embeddings=True,
    ),
  ),
}
