"""A method of one's own: only tokens of which the teacher is sure are distilled.

python -m examples.extending.method
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from egad_jax.from_config import Extensions
from egad_jax.losses.log_divergences import forward_kl
from egad_jax.losses.terms import log_pair, token_terms
from egad_jax.methods.method import Context, Method, TokenLoss, entropy_only
from egad_jax.types import Stats
from examples.extending.short_run import short_run, show


def make_sure_tokens(config: Any, *, fraction: float = 0.5) -> Method:
  """Forward KL on the tokens of lowest teacher entropy, divided by their share.

  Args:
    config: the run's config.
    fraction: share of the tokens that is distilled, in (0, 1]; given below, where the method gets
      its name.
  """

  def token_loss(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    extras: Mapping[str, jax.Array],
    context: Context,
  ) -> tuple[jax.Array, Stats]:
    pair = log_pair(student_logits, teacher_logits, teacher_entropy=extras.get("teacher_entropy"))
    position = context.state.entropy.position(pair.teacher_entropy)
    weight = (position < fraction) / fraction
    value = weight * forward_kl(pair.log_q, pair.log_p)
    return token_terms(pair, labels, value, ce_weight=config.loss.ce_weight, weight=weight)

  return Method(loss=TokenLoss(token_loss), **entropy_only(float(config.distribution.half_life)))


EXTENSIONS = Extensions(methods={"sure_tokens": functools.partial(make_sure_tokens, fraction=0.6)})

if __name__ == "__main__":
  show(short_run(EXTENSIONS, method="sure_tokens"))
