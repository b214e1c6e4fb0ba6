"""The head that makes all logits at once and uses plain autodiff: the reference implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from egad_jax.head.chunked import (
  Head,
  TokenLoss,
  check_shapes,
  logits_from,
  shared_vocabulary,
  soft_capped,
)


def dense_head(
  token_loss: TokenLoss,
  *,
  vocab_size: int | None = None,
  student_soft_cap: float | None = None,
  teacher_soft_cap: float | None = None,
) -> Head:
  """Makes a head with the value and gradient of `distillation_head`, but without chunks.

  It holds several float32 arrays of shape [tokens, vocab] for each model, so it suits small
  problems, and it has derivatives of all orders.

  Args:
    token_loss: as for `distillation_head`.
    vocab_size: as for `distillation_head`.
    student_soft_cap: as for `distillation_head`.
    teacher_soft_cap: as for `distillation_head`.
  """

  def head(
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    teacher_hidden: jax.Array,
    teacher_unembedding: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    extras: Mapping[str, jax.Array] | None = None,
    context: Any = (),
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    extras = dict(extras or {})
    check_shapes(
      student_hidden,
      student_unembedding,
      teacher_hidden,
      teacher_unembedding,
      labels,
      mask,
      extras,
    )
    rows = (student_unembedding.shape[0], teacher_unembedding.shape[0])
    vocab = shared_vocabulary(*rows, vocab_size)
    mask = mask.astype(bool)
    flat = mask.reshape(-1)

    def logits(hidden, unembedding, soft_cap):
      hidden = jnp.where(flat[:, None], hidden.reshape(flat.size, -1), 0)
      return soft_capped(logits_from(hidden, unembedding[:vocab].astype(hidden.dtype)), soft_cap)

    student_logits = logits(student_hidden, student_unembedding, student_soft_cap)
    teacher_logits = logits(teacher_hidden, teacher_unembedding, teacher_soft_cap)
    loss, stats = token_loss(
      student_logits,
      jax.lax.stop_gradient(teacher_logits),
      labels.reshape(-1),
      {k: v.reshape(-1) for k, v in extras.items()},
      context,
    )
    stats = {
      k: jax.lax.stop_gradient(jnp.where(flat, v, 0)).reshape(mask.shape) for k, v in stats.items()
    }
    return jnp.sum(jnp.where(flat, loss, 0)), stats

  return head
