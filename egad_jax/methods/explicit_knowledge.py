"""AEKT as a method, with or without a serial head; see `losses.explicit_knowledge`."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from egad_jax.losses.explicit_knowledge import (
  ExplicitKnowledge,
  check_aekt,
  explicit_knowledge_value,
  label_stats_of,
)
from egad_jax.losses.terms import log_pair, token_terms
from egad_jax.losses.top_k import check_dense
from egad_jax.methods.method import Context, Method, SerialHead, TokenLoss, entropy_only
from egad_jax.types import Params, Stats


def make_aekt(
  *,
  explicit_knowledge: ExplicitKnowledge = ExplicitKnowledge(),  # noqa: B008 (frozen)
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  half_life: float = 1e6,
) -> Method:
  """Makes AEKT (arXiv 2409.01679), as reconstructed in `losses.explicit_knowledge`; a `Method`.

  The loss of a token is that of the module plus ce_weight CE. The stat `weight` is the weight of
  the explicit term: lambda times the clipped ratio.

  Args:
    explicit_knowledge: the form of both terms, and whether there is a serial head.
    temperature: T of both terms and of the ratio, with T^2 compensation; > 0.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss. With
      a serial head it must be > 0, and the cross-entropy acts on the hidden states before the map.
    half_life: tokens after which a token counts half in the entropy distribution, which only
      reports read here; > 0.

  Raises:
    ValueError: an argument is out of range; or a serial head without cross-entropy.

  >>> method = make_aekt(explicit_knowledge=ExplicitKnowledge(serial=True), ce_weight=0.5)
  >>> method.init_params(jax.random.key(0), student_dim=2, teacher_dim=3, num_taps=0)["serial"]
  Array([[1., 0.],
         [0., 1.]], dtype=float32)
  """
  check_aekt(explicit_knowledge.serial, temperature, ce_weight)

  def token_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    extras: Mapping[str, jax.Array],
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    del context
    check_dense("aekt", teacher_logits)
    pair = log_pair(student_logits, teacher_logits, teacher_entropy=extras.get("teacher_entropy"))
    value, weight = explicit_knowledge_value(pair, labels, explicit_knowledge, temperature)
    return token_terms(
      pair,
      labels,
      value,
      ce_weight=0.0 if explicit_knowledge.serial else ce_weight,
      temperature=temperature,
      weight=weight,
    )

  if not explicit_knowledge.serial:
    return Method(loss=TokenLoss(token_loss), **entropy_only(half_life))

  def label_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    extras: Mapping[str, jax.Array],
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    del teacher_logits, extras, context
    stats = label_stats_of(student_logits, labels)
    return ce_weight * stats["cross_entropy"], jax.lax.stop_gradient(stats)

  return Method(
    loss=TokenLoss(token_loss),
    init_params=init_serial,
    serial=SerialHead(apply_serial, label_loss),
    **entropy_only(half_life),
  )


def init_serial(
  key: jax.Array, *, student_dim: int, teacher_dim: int, num_taps: int
) -> dict[str, jax.Array]:
  """Returns {"serial": float32 [student_dim, student_dim]}, the identity."""
  del key, teacher_dim, num_taps
  return {"serial": jnp.eye(student_dim, dtype=jnp.float32)}


def apply_serial(params: Params, student_hidden: jax.Array) -> jax.Array:
  """Applies the map to student hidden states [..., student_dim]; shape and dtype stay."""
  return student_hidden @ params["serial"].astype(student_hidden.dtype)
