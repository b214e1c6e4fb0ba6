"""GPT-2: learned positions, LayerNorm, biases everywhere, matrices stored as [in, out]."""

from __future__ import annotations

from typing import Any

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig, LayerKind
from egad_jax.models.family import Family
from egad_jax.models.hf_config import HFConfig, checked_config, config_keys
from egad_jax.models.layout import row

_BLOCK = "transformer.h.{layer}"
_QKV = ("attention/query", "attention/key", "attention/value")
_TENSORS = (
  row("embedding", "transformer.wte"),
  row("positions", "transformer.wpe"),
  row("final_norm/scale", "transformer.ln_f"),
  row("final_norm/bias", "transformer.ln_f"),
  row("unembedding", "lm_head"),
  row(" ".join(_QKV), f"{_BLOCK}.attn.c_attn", in_out=True),
  row(" ".join(f"{path}_bias" for path in _QKV), f"{_BLOCK}.attn.c_attn"),
  *(
    row(f"{ours}{bias}", f"{_BLOCK}.{hf}", in_out=True)
    for ours, hf in (
      ("attention/output", "attn.c_proj"),
      ("mlp/up", "mlp.c_fc"),
      ("mlp/down", "mlp.c_proj"),
    )
    for bias in ("", "_bias")
  ),
  *(
    row(f"{ours}/{part}", f"{_BLOCK}.{hf}")
    for ours, hf in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2"))
    for part in ("scale", "bias")
  ),
)


def _from_hf(hf: HFConfig) -> DecoderConfig:
  heads, dim = hf.integer("n_head"), hf.integer("n_embd")
  if dim % heads:
    raise InputError(f"{hf.source}: n_head ({heads}) must divide n_embd ({dim}).")
  return checked_config(
    hf.source,
    vocab_size=hf.integer("vocab_size"),
    dim=dim,
    num_layers=hf.integer("n_layer"),
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=dim // heads,
    mlp_dim=hf.integer("n_inner", 4 * dim),
    norm_eps=hf.number("layer_norm_epsilon"),
    tie_embeddings=hf.flag("tie_word_embeddings"),
    max_seq_len=hf.integer("n_positions"),
    embedding_std=hf.number("initializer_range"),
    pattern=(LayerKind(rope=False),),
    activation=hf.activation("activation_function"),
    gated_mlp=False,
    qkv_bias=True,
    attention_bias=True,
    mlp_bias=True,
    layer_norm=True,
    learned_positions=True,
  )


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
  activation = {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation)
  return {
    "activation_function": activation,
    "initializer_range": config.embedding_std,
    "layer_norm_epsilon": config.norm_eps,
    "n_embd": config.dim,
    "n_head": config.num_heads,
    "n_inner": config.mlp_dim,
    "n_layer": config.num_layers,
    "n_positions": config.max_seq_len,
  }


FAMILY = Family(
  name="gpt2",
  title="GPT-2",
  architectures=("GPT2LMHeadModel",),
  keys=config_keys(
    "n_embd",
    "n_head",
    "n_layer",
    "n_inner",
    "n_positions",
    "layer_norm_epsilon",
    "activation_function",
  ),
  defaults={
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
  },
  config_from_hf=_from_hf,
  config_to_hf=_to_hf,
  tensors=_TENSORS,
  prefix="transformer.",
  derived=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
)
