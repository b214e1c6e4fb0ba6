"""The head that makes all logits at once and uses plain autodiff: the reference implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from egad_jax.head.inputs import Head, Inputs, TokenLoss, check_inputs
from egad_jax.head.logits import logits_from, soft_capped
from egad_jax.head.teacher import chunk_teacher, mapped, masked, prepared
from egad_jax.teachers.outputs import Outputs


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

  def of_outputs(
    student_hidden: jax.Array,
    student_unembedding: jax.Array,
    outputs: Outputs,
    labels: jax.Array,
    mask: jax.Array,
    extras: Mapping[str, jax.Array] | None = None,
    context: Any = (),
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    extras = dict(extras or {})
    arrays = (student_hidden, student_unembedding, outputs, labels, mask, extras, context)
    vocab = check_inputs(Inputs(*arrays), vocab_size)
    mask = mask.astype(bool)
    flat = mask.reshape(-1)
    rows = mapped(outputs, lambda x: x.reshape(flat.size, *x.shape[mask.ndim :]))
    rows = prepared(masked(jax.lax.stop_gradient(rows), flat), vocab)
    teacher = chunk_teacher(rows, vocab, teacher_soft_cap)
    hidden = jnp.where(flat[:, None], student_hidden.reshape(flat.size, -1), 0)
    student_logits = logits_from(hidden, student_unembedding[:vocab].astype(hidden.dtype))
    loss, stats = token_loss(
      soft_capped(student_logits, student_soft_cap),
      teacher.logits,
      labels.reshape(-1),
      teacher.extras({k: v.reshape(-1) for k, v in extras.items()}),
      context,
    )
    stats = {
      k: jax.lax.stop_gradient(jnp.where(flat, v, 0)).reshape(mask.shape)
      for k, v in {**stats, **teacher.stats}.items()
    }
    return jnp.sum(jnp.where(flat, loss, 0)), stats

  return Head(of_outputs)
