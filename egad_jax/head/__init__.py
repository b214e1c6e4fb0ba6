"""The same losses straight from hidden states, without [tokens, vocab] arrays."""

from egad_jax.head.chunked import distillation_head
from egad_jax.head.dense import dense_head
from egad_jax.head.sharded import sharded_head

__all__ = ["dense_head", "distillation_head", "sharded_head"]
