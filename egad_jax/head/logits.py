"""Logits from hidden states."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def soft_capped(logits: jax.Array, soft_cap: float | None) -> jax.Array:
  """Returns `cap * tanh(logits / cap)` (Gemma 2, section 2); the logits if the cap is None."""
  return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def logits_from(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
  """`hidden @ unembedding.T` accumulated and returned in (at least) float32."""
  dtype = jnp.promote_types(hidden.dtype, jnp.float32)
  return jnp.einsum("nd,vd->nv", hidden, unembedding, preferred_element_type=dtype)
