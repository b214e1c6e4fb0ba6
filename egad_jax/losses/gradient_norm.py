"""Compensations for a temperature that read the gradient, for which no power of T is right.

A temperature changes two things about a token: the direction of its gradient with respect to the
student's logits, which is what the token teaches, and the norm of that gradient, which is how much
the token weighs beside others. T^2 keeps neither, and the norm that it leaves differs from token to
token. Each compensation here changes one and keeps the other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from egad_jax.losses.log_divergences import LogDivergence
from egad_jax.losses.probabilities import log_probabilities
from egad_jax.losses.terms import LogPair, at_temperature

LARGEST_RATIO = 4.0
"""Limit of the factor on a token, and of its inverse.

Where student and teacher agree both norms vanish, and their ratio is rounding.
"""


def norm_compensated(
  divergence: LogDivergence, pair: LogPair, temperature: float | jax.Array, *, kind: str
) -> jax.Array:
  """Returns the divergence of each token with its gradient's norm or direction kept, [...].

  With g(T) the gradient of T^2 D(T) with respect to the student's logits and r = |g(1)| / |g(T)|,
  clipped to [1/4, 4] and detached:

  - gradient_norm: r T^2 D(T), whose gradient has the direction of g(T) and the norm of g(1).
  - gradient_norm_only: D(1) / r, whose gradient has the direction of g(1) and the norm of g(T); the
    control of the former.

  Args:
    divergence: (log_q, log_p), each [..., categories] -> [...]; see `log_divergences`.
    pair: the tokens' distributions.
    temperature: T > 0, one number or one per token [...], which carries no gradient.
    kind: one of the above.
  """
  plain = divergence(*at_temperature(pair, 1.0))
  warm = divergence(*at_temperature(pair, temperature))
  squared = temperature**2
  plain_norm = _gradient_norm(divergence, pair, 1.0)
  warm_norm = squared * _gradient_norm(divergence, pair, temperature)
  # Where both norms are 0 the gradient is 0 whatever the factor, as long as that is finite.
  ratio = plain_norm / jnp.maximum(warm_norm, jnp.finfo(warm_norm.dtype).tiny)
  ratio = jnp.clip(ratio, 1 / LARGEST_RATIO, LARGEST_RATIO)
  return ratio * squared * warm if kind == "gradient_norm" else plain / ratio


def _gradient_norm(
  divergence: LogDivergence, pair: LogPair, temperature: float | jax.Array
) -> jax.Array:
  """Returns the norm of the gradient with respect to the student's logits, [...], detached."""
  _, log_p = at_temperature(pair, temperature)

  def total(logits: jax.Array) -> jax.Array:
    return jnp.sum(divergence(log_probabilities(logits, temperature=temperature), log_p))

  gradient = jax.grad(total)(jax.lax.stop_gradient(pair.student_logits))
  return jnp.linalg.norm(gradient, axis=-1)
