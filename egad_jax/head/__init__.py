"""Distillation heads: the losses computed from hidden states, without [tokens, vocab] arrays."""

from egad_jax.head.chunked import distillation_head
from egad_jax.head.dense import dense_head
from egad_jax.head.on_mesh import head_on_mesh
from egad_jax.head.sharded import sharded_head
from egad_jax.head.vocab_parallel import vocab_parallel_head

__all__ = [
  "dense_head",
  "distillation_head",
  "head_on_mesh",
  "sharded_head",
  "vocab_parallel_head",
]
