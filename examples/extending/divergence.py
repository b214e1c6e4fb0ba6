"""A divergence of one's own: Jeffreys' divergence, the sum of both KL divergences.

python -m examples.extending.divergence
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from egad_jax.from_config import Extensions
from examples.extending.short_run import short_run, show


def jeffreys(log_q: jax.Array, log_p: jax.Array, *, reverse_weight: float = 1.0) -> jax.Array:
  """KL(p || q) + reverse_weight KL(q || p) in nats, [...].

  Args:
    log_q: the student's log-probabilities, [..., vocab].
    log_p: the teacher's, the same shape.
    reverse_weight: weight of the second term; given below, where the divergence gets its name.
  """
  forward = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
  return forward + reverse_weight * jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


EXTENSIONS = Extensions(divergences={"jeffreys": functools.partial(jeffreys, reverse_weight=0.5)})

if __name__ == "__main__":
  show(short_run(EXTENSIONS, loss__divergence="jeffreys"))
