"""Architectures by name, for training from scratch and for planning without weights."""

from __future__ import annotations

import dataclasses
import difflib

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig, Experts, Llama3RopeScaling


def _smollm2(
  *,
  dim: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int,
  mlp_dim: int,
  rope_theta: float = 100_000.0,
) -> DecoderConfig:
  return DecoderConfig(
    vocab_size=49152,
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=64,
    mlp_dim=mlp_dim,
    rope_theta=rope_theta,
    max_seq_len=8192,
  )


def _llama3(
  *,
  dim: int,
  num_layers: int,
  num_heads: int,
  head_dim: int,
  mlp_dim: int,
  factor: float,
  tie_embeddings: bool,
) -> DecoderConfig:
  return DecoderConfig(
    vocab_size=128256,
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=8,
    head_dim=head_dim,
    mlp_dim=mlp_dim,
    rope_theta=500_000.0,
    rope_scaling=Llama3RopeScaling(factor=factor),
    tie_embeddings=tie_embeddings,
    max_seq_len=131072,
  )


def _qwen3(
  *,
  dim: int,
  num_layers: int,
  num_heads: int,
  mlp_dim: int,
  tie_embeddings: bool,
) -> DecoderConfig:
  return DecoderConfig(
    vocab_size=151936,
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=mlp_dim,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
    qk_norm=True,
    family="qwen3",
    tie_embeddings=tie_embeddings,
    max_seq_len=40960,
  )


ARCHITECTURES: dict[str, DecoderConfig] = {
  "tiny": DecoderConfig(
    vocab_size=512,
    dim=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    max_seq_len=512,
    # Large, so that a random teacher's entropies spread over several nats, as a trained one's do.
    embedding_std=0.4,
  ),
  "smollm2-135m": _smollm2(dim=576, num_layers=30, num_heads=9, num_kv_heads=3, mlp_dim=1536),
  "smollm2-360m": _smollm2(dim=960, num_layers=32, num_heads=15, num_kv_heads=5, mlp_dim=2560),
  "smollm2-1.7b": _smollm2(
    dim=2048, num_layers=24, num_heads=32, num_kv_heads=32, mlp_dim=8192, rope_theta=130_000.0
  ),
  "llama-3.2-1b": _llama3(
    dim=2048,
    num_layers=16,
    num_heads=32,
    head_dim=64,
    mlp_dim=8192,
    factor=32.0,
    tie_embeddings=True,
  ),
  "llama-3.2-3b": _llama3(
    dim=3072,
    num_layers=28,
    num_heads=24,
    head_dim=128,
    mlp_dim=8192,
    factor=32.0,
    tie_embeddings=True,
  ),
  "llama-3.1-8b": _llama3(
    dim=4096,
    num_layers=32,
    num_heads=32,
    head_dim=128,
    mlp_dim=14336,
    factor=8.0,
    tie_embeddings=False,
  ),
  "llama-3.1-70b": _llama3(
    dim=8192,
    num_layers=80,
    num_heads=64,
    head_dim=128,
    mlp_dim=28672,
    factor=8.0,
    tie_embeddings=False,
  ),
  "qwen3-0.6b": _qwen3(dim=1024, num_layers=28, num_heads=16, mlp_dim=3072, tie_embeddings=True),
  "qwen3-1.7b": _qwen3(dim=2048, num_layers=28, num_heads=16, mlp_dim=6144, tie_embeddings=True),
  "qwen3-4b": _qwen3(dim=2560, num_layers=36, num_heads=32, mlp_dim=9728, tie_embeddings=True),
  "qwen3-8b": _qwen3(dim=4096, num_layers=36, num_heads=32, mlp_dim=12288, tie_embeddings=False),
  "qwen3-32b": _qwen3(dim=5120, num_layers=64, num_heads=64, mlp_dim=25600, tie_embeddings=False),
  "qwen3-30b-a3b": dataclasses.replace(
    _qwen3(dim=2048, num_layers=48, num_heads=32, mlp_dim=6144, tie_embeddings=False),
    num_kv_heads=4,
    experts=Experts(count=128, chosen=8, mlp_dim=768),
    family="qwen3_moe",
  ),
}


def architecture(name: str) -> DecoderConfig:
  """Looks an architecture up by name.

  Raises:
    InputError: the name is unknown; the message lists the known ones.

  >>> architecture("smollm2-135m").num_layers
  30
  """
  if name in ARCHITECTURES:
    return ARCHITECTURES[name]
  close = difflib.get_close_matches(name, ARCHITECTURES, n=1)
  hint = f' Did you mean "{close[0]}"?' if close else ""
  known = ", ".join(sorted(ARCHITECTURES))
  raise InputError(f'unknown architecture "{name}"; known: {known}.{hint}')
