"""A method of one's own: only tokens of which the teacher is sure are distilled.

python -m examples.extending.method
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from egad_jax.from_config import Extensions
from egad_jax.losses.log_divergences import forward_kl
from egad_jax.losses.terms import log_pair, token_terms
from egad_jax.methods.method import Context, Method, TokenLoss, entropy_only
from egad_jax.types import Stats
from examples.extending.short_run import short_run, show


def make_sure_tokens(config: Any) -> Method:
  """Forward KL on the tokens below the running median of teacher entropy, at twice the weight."""

  def token_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    extras: Mapping[str, jax.Array],
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    del extras
    pair = log_pair(student_logits, teacher_logits)
    position = context.state.entropy.position(pair.teacher_entropy)
    weight = 2.0 * (position < 0.5)
    value = weight * forward_kl(pair.log_q, pair.log_p)
    return token_terms(pair, labels, value, ce_weight=config.loss.ce_weight, weight=weight)

  return Method(loss=TokenLoss(token_loss), **entropy_only(float(config.distribution.half_life)))


EXTENSIONS = Extensions(methods={"sure_tokens": make_sure_tokens})

if __name__ == "__main__":
  show(short_run(EXTENSIONS, method="sure_tokens"))
