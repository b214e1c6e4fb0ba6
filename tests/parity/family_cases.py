"""Small configurations of every family, which cover its flags, and weights made from a seed."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "families"
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
SLIDING, FULL = "sliding_attention", "full_attention"


def _sizes(heads: int, kv_heads: int, head_dim: int, layers: int, **more: Any) -> dict[str, Any]:
  return {
    "vocab_size": 41,
    "hidden_size": 30 if heads == 5 else 24,
    "intermediate_size": 40,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": head_dim,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
  } | more


def _windows(window: int, types: Sequence[str], **more: Any) -> dict[str, Any]:
  return {
    "use_sliding_window": True,
    "sliding_window": window,
    "layer_types": list(types),
  } | more


_GPT2: dict[str, Any] = {
  "vocab_size": 41,
  "n_positions": 128,
  "n_embd": 24,
  "n_layer": 2,
  "n_head": 4,
  "bos_token_id": None,
  "eos_token_id": None,
}
_MOE = {"moe_intermediate_size": 12, "norm_topk_prob": True}

# Family -> keyword arguments of its configuration in transformers.
CASES: Mapping[str, tuple[dict[str, Any], ...]] = {
  "llama": (
    _sizes(3, 1, 8, 3, tie_word_embeddings=True, rope_scaling=LLAMA3, rope_theta=500.0),
    _sizes(4, 2, 6, 2, attention_bias=True, mlp_bias=True),
    _sizes(5, 5, 4, 2, rope_scaling={"rope_type": "linear", "factor": 3.0}, rms_norm_eps=1e-4),
  ),
  "qwen2": (
    _sizes(3, 1, 8, 2, tie_word_embeddings=True, rope_theta=1000.0),
    _sizes(4, 2, 6, 3, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    _sizes(2, 2, 12, 5, **_windows(4, (SLIDING, FULL) * 2 + (SLIDING,)), rope_scaling=LLAMA3),
  ),
  "qwen3": (
    _sizes(3, 1, 16, 2, tie_word_embeddings=True),
    _sizes(4, 2, 8, 2, attention_bias=True, rope_theta=1000.0),
    _sizes(5, 5, 4, 5, **_windows(6, (FULL, FULL, SLIDING, FULL, FULL))),
  ),
  "qwen3_moe": (
    _sizes(3, 1, 8, 2, **_MOE, num_experts=4, num_experts_per_tok=2),
    _sizes(
      4,
      2,
      8,
      3,
      **(_MOE | {"norm_topk_prob": False}),
      num_experts=7,
      num_experts_per_tok=3,
      use_sliding_window=True,
      sliding_window=5,
    ),
    _sizes(
      2,
      2,
      6,
      2,
      **_MOE,
      num_experts=3,
      num_experts_per_tok=1,
      tie_word_embeddings=True,
      attention_bias=True,
    ),
  ),
  "mistral": (
    _sizes(4, 2, 8, 2, sliding_window=5),
    _sizes(3, 1, 12, 2, sliding_window=None, rope_theta=1000.0),
    _sizes(5, 5, 4, 3, sliding_window=8, tie_word_embeddings=True),
  ),
  "smollm3": (
    _sizes(3, 1, 8, 5),
    _sizes(
      4,
      2,
      6,
      5,
      no_rope_layers=[1, 0, 0, 1, 0],
      use_sliding_window=True,
      sliding_window=5,
      tie_word_embeddings=False,
    ),
    _sizes(2, 2, 12, 3, no_rope_layer_interval=2, attention_bias=True, mlp_bias=True),
  ),
  "gemma2": (
    _sizes(3, 1, 8, 5, sliding_window=6, query_pre_attn_scalar=8),
    _sizes(
      4,
      2,
      8,
      2,
      sliding_window=5,
      query_pre_attn_scalar=13,
      attn_logit_softcapping=4.0,
      final_logit_softcapping=5.0,
      tie_word_embeddings=False,
    ),
    _sizes(
      2,
      2,
      6,
      3,
      layer_types=[FULL, FULL, SLIDING],
      sliding_window=7,
      attention_bias=True,
      attn_logit_softcapping=None,
      final_logit_softcapping=None,
    ),
  ),
  "gemma3_text": (
    _sizes(
      4,
      2,
      8,
      3,
      layer_types=[SLIDING, FULL, SLIDING],
      sliding_window=5,
      query_pre_attn_scalar=13,
      rope_scaling={"rope_type": "linear", "factor": 8.0},
      rope_theta=1000.0,
      rope_local_base_freq=50.0,
    ),
    _sizes(3, 1, 8, 8, sliding_window=6, query_pre_attn_scalar=8),
    _sizes(
      2,
      2,
      6,
      5,
      sliding_window_pattern=2,
      sliding_window=4,
      final_logit_softcapping=6.0,
      tie_word_embeddings=False,
    ),
  ),
  "gpt2": (
    _GPT2,
    _GPT2 | {"n_embd": 15, "n_head": 3, "n_inner": 20, "activation_function": "gelu", "n_layer": 3},
    _GPT2 | {"tie_word_embeddings": False, "n_head": 2, "layer_norm_epsilon": 1e-3},
  ),
  "phi3": (
    _sizes(4, 4, 6, 2),
    _sizes(3, 1, 8, 3, sliding_window=5),
    _sizes(4, 2, 6, 2, tie_word_embeddings=True, rope_theta=1000.0),
  ),
  "olmo2": (
    _sizes(3, 3, 8, 2),
    _sizes(4, 2, 6, 3, rope_theta=1000.0),
    _sizes(6, 2, 4, 2, tie_word_embeddings=True, attention_bias=True),
  ),
  "granite": (
    _sizes(
      3,
      1,
      8,
      3,
      embedding_multiplier=6.0,
      logits_scaling=3.0,
      residual_multiplier=0.4,
      attention_multiplier=0.2,
    ),
    _sizes(4, 2, 6, 2, tie_word_embeddings=True, attention_multiplier=0.5),
    _sizes(2, 2, 12, 2, attention_bias=True, mlp_bias=True, logits_scaling=8.0),
  ),
}


def weights(family: str, shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
  """Values of all tensors of a checkpoint, float32, the same on every machine.

  Args:
    family: name of the family; Gemma's norms are stored less 1.
    shapes: shape of each tensor by its name in Hugging Face's files.
    seed: changes all values.
  """
  made = {}
  norm = 0.0 if family.startswith("gemma") else 1.0
  for name, shape in shapes.items():
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    # The legacy generator, whose numbers never change.
    values = np.random.RandomState(int.from_bytes(digest[:4], "little")).standard_normal(shape)
    width = 0.3 if len(shape) < 2 else 1.3 / np.sqrt(shape[-1])
    made[name] = ((norm if "norm" in name else 0.0) + width * values).astype(np.float32)
  return made


def write_model(
  directory: pathlib.Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> pathlib.Path:
  """Writes config.json and model.safetensors, and returns the directory."""
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "config.json").write_text(json.dumps(config), "utf-8")
  safetensors.numpy.save_file(
    dict(arrays), directory / "model.safetensors", metadata={"format": "pt"}
  )
  return directory


def prompts(vocab_size: int) -> list[list[int]]:
  """Three prompts of different lengths, the longest above every window."""
  random = np.random.RandomState(7)
  return [random.randint(0, vocab_size, size).tolist() for size in (13, 7, 3)]


def rows_of(texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
  """(tokens, positions, segment ids): one row with all texts packed, then one row for each text."""
  total = sum(map(len, texts)) + 2
  rows = np.zeros((3, 1 + len(texts), total), np.int32)
  start = 0
  for i, text in enumerate(texts):
    size = len(text)
    for row, first in ((0, start), (1 + i, 0)):
      rows[0, row, first : first + size] = text
      rows[1, row, first : first + size] = np.arange(size)
      rows[2, row, first : first + size] = 1 + i
    start += size
  return tuple(rows)


def head(model: Any, params: Any, hidden: jax.Array) -> jax.Array:
  """Logits of hidden states, as the distillation head and the generation compute them."""
  logits = hidden @ model.unembedding(params).T
  cap = model.config.logit_soft_cap
  return logits if cap is None else cap * jnp.tanh(logits / cap)
