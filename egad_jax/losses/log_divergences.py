"""Divergences between student and teacher, on log-probabilities: formulas, options and their table.

Each divergence is written here once. Every function takes

  log_q: the student's log-probabilities at a temperature, from `log_probabilities` (so they are
    finite), float, shape [..., vocab].
  log_p: the teacher's at the same temperature, same shape, detached.

and returns one number per token, shape [...], in nats unless it says otherwise; its options are
keyword-only. p is the teacher's and q the student's distribution, T the temperature. `divergences`
derives from these functions those of the same names on logits. Methods, which need the
log-probabilities for other terms too, compute them once and use the functions here.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from egad_jax.losses.probabilities import LOG_ZERO, is_label, label_value

SMALLEST_POWER = 0.01
"""Least nonzero alpha or beta of `alpha_beta` in float32.

The terms are differences of order alpha beta, which rounding loses below this.
"""

LogDivergence = Callable[..., jax.Array]


def forward_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """KL(teacher || student) = sum p log(p/q); makes the student cover the teacher's modes.

  Its gradient with respect to the student's logits is (q - p) / T. Hinton et al., arXiv 1503.02531.
  """
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def reverse_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """KL(student || teacher) = sum q log(q/p); makes the student seek the teacher's modes.

  Its gradient with respect to the student's logits is q (log(q/p) - KL) / T. MiniLLM, arXiv
  2306.08543.
  """
  return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def jensen_shannon(log_q: jax.Array, log_p: jax.Array, *, beta: float = 0.5) -> jax.Array:
  """Generalized Jensen-Shannon: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1-beta) q.

  From GKD, arXiv 2306.13649, with its convention of beta. The value is continuous in beta, so it is
  0 at beta 0 and 1 and small near them: value / beta -> forward KL as beta -> 0, value / (1 - beta)
  -> reverse KL as beta -> 1. (TRL returns the two KLs themselves at the ends, a jump.) At beta 1/2
  the value is at most log 2.

  Args:
    beta: the teacher's share of the mixture m, in [0, 1].
  """
  check_share("beta", beta)
  log_m = _log_mixture(log_p, log_q, beta)
  return beta * forward_kl(log_m, log_p) + (1 - beta) * forward_kl(log_m, log_q)


def skew_forward_kl(log_q: jax.Array, log_p: jax.Array, *, alpha: float = 0.1) -> jax.Array:
  """KL(p || alpha p + (1 - alpha) q), at most -log alpha; forward KL at alpha 0.

  DistiLLM, arXiv 2402.03898.

  Args:
    alpha: the teacher's share of the mixture, in [0, 1].
  """
  check_share("alpha", alpha)
  return forward_kl(_log_mixture(log_p, log_q, alpha), log_p)


def skew_reverse_kl(log_q: jax.Array, log_p: jax.Array, *, alpha: float = 0.1) -> jax.Array:
  """KL(q || (1 - alpha) p + alpha q), at most -log alpha; reverse KL at alpha 0.

  DistiLLM, arXiv 2402.03898; the gradient also flows through the mixture.

  Args:
    alpha: the student's share of the mixture, in [0, 1].
  """
  check_share("alpha", alpha)
  return forward_kl(_log_mixture(log_q, log_p, alpha), log_q)


def total_variation(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Total variation distance 1/2 sum |q - p|, in [0, 1] (not nats).

  f-distill, arXiv 2307.15190.
  """
  gap = jnp.abs(jnp.exp(log_q) - jnp.exp(log_p))
  return 0.5 * jnp.sum(jnp.where(_apart(log_q, log_p), gap, 0), axis=-1)


def hellinger(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Hellinger distance sqrt(1/2 sum (sqrt q - sqrt p)^2), in [0, 1] (not nats).

  AdaKD's measure of a token's difficulty (arXiv 2510.11615). Because it is a distance, its gradient
  does not vanish as q approaches p; it suits measuring rather than training and is not in
  `DIVERGENCES`. Its square is a quarter of `alpha_beta` at (1/2, 1/2). At q = p the gradient is 0.
  """
  gap = jnp.exp(0.5 * log_q) - jnp.exp(0.5 * log_p)
  square = 0.5 * jnp.sum(jnp.where(_apart(log_q, log_p), gap**2, 0), axis=-1)
  # The slope of the root at 0 is infinite, and infinity times the square's slope of 0 is NaN.
  # Taking the root of 1 there makes the gradient 0 at equal distributions.
  same = square == 0
  return jnp.where(same, 0, jnp.sqrt(jnp.where(same, 1, square)))


def alpha_beta(
  log_q: jax.Array, log_p: jax.Array, *, alpha: float = 0.2, beta: float = 0.7
) -> jax.Array:
  """Alpha-beta divergence, between forward KL at (1, 0) and reverse KL at (0, 1).

  -1/(ab) sum(p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)) with a = alpha, b = beta, and its limits
  where one of them is 0. (1/2, 1/2) is 4 times the squared Hellinger distance, (1, 1) half the
  squared Euclidean distance. ABKD, arXiv 2505.04560.

  Args:
    alpha: power a of p: 0 or, in float32, at least 0.01, because smaller values are lost to
      rounding.
    beta: power b of q, with the same limits; alpha and beta must not both be 0.
  """
  smallest = SMALLEST_POWER if log_q.dtype == jnp.float32 else 0
  in_range = all(x == 0 or smallest <= x < math.inf for x in (alpha, beta))
  if not in_range or alpha == beta == 0:
    raise ValueError(
      f"alpha and beta must each be 0 or at least {SMALLEST_POWER} (less needs float64), and not"
      f" both 0, got alpha {alpha}, beta {beta}; (1, 0) is forward_kl and (0, 1) reverse_kl."
    )
  total = alpha + beta
  if beta == 0:
    log_ratio = alpha * (log_p - log_q)
    terms = jnp.exp(alpha * log_p) * (log_ratio - 1) + jnp.exp(alpha * log_q)
    return jnp.sum(terms, axis=-1) / alpha**2
  if alpha == 0:
    log_ratio = beta * (log_q - log_p)
    terms = jnp.exp(beta * log_q) * (log_ratio - 1) + jnp.exp(beta * log_p)
    return jnp.sum(terms, axis=-1) / beta**2
  own = (alpha * jnp.exp(total * log_p) + beta * jnp.exp(total * log_q)) / total
  return jnp.sum(own - jnp.exp(alpha * log_p + beta * log_q), axis=-1) / (alpha * beta)


def adaptive_kl(log_q: jax.Array, log_p: jax.Array, *, head_mass: float = 0.5) -> jax.Array:
  """Forward and reverse KL, mixed per token by where p and q differ (AKL, arXiv 2404.02657).

  (g_head KL(p||q) + g_tail KL(q||p)) / (g_head + g_tail), g = sum |p - q| over the head, the
  smallest set of likeliest teacher tokens with mass >= head_mass, and over the rest; both
  detached. The entry that crosses head_mass is in the head (implementations differ there).
  Sorts the vocabulary.

  Args:
    head_mass: the teacher's probability that the head has at least, in (0, 1].
  """
  if not 0 < head_mass <= 1:
    raise ValueError(f"head_mass must be in (0, 1], got {head_mass}.")
  p = jnp.exp(log_p)
  gap = jax.lax.stop_gradient(jnp.abs(p - jnp.exp(log_q)))
  negative_p, gap = jax.lax.sort((-p, gap), dimension=-1, num_keys=1, is_stable=True)
  # The entry that crosses head_mass belongs to the head: count the mass before it.
  mass_before = jnp.cumsum(-negative_p, axis=-1) + negative_p
  in_head = mass_before < head_mass
  head = jnp.sum(gap, axis=-1, where=in_head)
  tail = jnp.sum(gap, axis=-1, where=~in_head)
  same = head + tail == 0
  forward_share = jnp.where(same, 0.5, head / jnp.where(same, 1, head + tail))
  return forward_share * forward_kl(log_q, log_p) + (1 - forward_share) * reverse_kl(log_q, log_p)


def token_wise_kl(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Forward and reverse KL, mixed per vocabulary entry (ToDi, arXiv 2505.16297).

  sum w p log(p/q) + (1 - w) q log(q/p), w = p / (p + q), detached. Its value is that of
  KL(p||q) + KL(q||p); the stop-gradient makes the method.
  """
  log_ratio = log_p - log_q
  # Without the stop-gradient the value is the same, but the gradient is that of both KLs' sum.
  w = jax.lax.stop_gradient(jax.nn.sigmoid(log_ratio))
  return jnp.sum((w * jnp.exp(log_p) - (1 - w) * jnp.exp(log_q)) * log_ratio, axis=-1)


def target_class_kl(log_q: jax.Array, log_p: jax.Array, labels: jax.Array) -> jax.Array:
  """KL between (p_y, 1 - p_y) and (q_y, 1 - q_y), y the label (DKD, arXiv 2203.08679).

  forward_kl = target_class_kl + (1 - p_y) non_target_class_kl.

  Args:
    labels: int, shape [...], in [0, vocab).
  """
  value = jnp.zeros(log_q.shape[:-1], log_q.dtype)
  if log_q.shape[-1] == 1:
    return value
  for log_p_part, log_q_part in zip(
    _target_and_rest(log_p, labels), _target_and_rest(log_q, labels), strict=True
  ):
    value = value + jnp.exp(log_p_part) * (log_p_part - log_q_part)
  return value


def non_target_class_kl(log_q: jax.Array, log_p: jax.Array, labels: jax.Array) -> jax.Array:
  """KL(p || q) over all but the label, both renormalized there (DKD, arXiv 2203.08679).

  Its gradient at the label is zero.

  Args:
    labels: int, shape [...], in [0, vocab).
  """
  if log_q.shape[-1] == 1:
    return jnp.zeros(log_q.shape[:-1], log_q.dtype)
  at_label = is_label(log_q, labels)
  # The label's own term would have exp(log p_y - log(1 - p_y)), infinite for a confident model, and
  # make the gradient NaN although the sum leaves it out.
  log_p, log_q = (
    jnp.where(at_label, LOG_ZERO, logs - _target_and_rest(logs, labels)[1][..., None])
    for logs in (log_p, log_q)
  )
  return forward_kl(log_q, log_p)


LOG_DIVERGENCES: Mapping[str, LogDivergence] = {
  "forward_kl": forward_kl,
  "reverse_kl": reverse_kl,
  "jensen_shannon": jensen_shannon,
  "skew_forward_kl": skew_forward_kl,
  "skew_reverse_kl": skew_reverse_kl,
  "total_variation": total_variation,
  "alpha_beta": alpha_beta,
  "adaptive_kl": adaptive_kl,
  "token_wise_kl": token_wise_kl,
}
"""The divergences that need no labels, by name; a method can use any of them.

This is the only table: `divergences.DIVERGENCES` and the keys of the config follow it.
"""


def make_divergence(
  divergence: str | LogDivergence, options: Mapping[str, Any] | None = None
) -> LogDivergence:
  """Returns `(log_q, log_p) -> [...]` for a divergence by name, or one of the caller's own.

  Args:
    divergence: a key of `DIVERGENCES`; or a function of the student's and the teacher's
      log-probabilities, each [..., vocab], hyper-parameters keyword-only.
    options: hyper-parameters of the divergence, such as {"beta": 0.1} for "jensen_shannon"; None
      for its defaults.

  Raises:
    ValueError: unknown name or option, or an option out of range.
  """
  if isinstance(divergence, str) and divergence not in LOG_DIVERGENCES:
    names = ", ".join(LOG_DIVERGENCES)
    raise ValueError(f"divergence must be one of {names}, got {divergence!r}.")
  function = LOG_DIVERGENCES[divergence] if isinstance(divergence, str) else divergence
  name = divergence if isinstance(divergence, str) else getattr(function, "__name__", "given")
  options = dict(options or {})
  parameters = inspect.signature(function).parameters.values()
  allowed = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
  unknown = sorted(set(options) - set(allowed))
  if unknown:
    raise ValueError(
      f"divergence {name} takes the options {', '.join(allowed) or '(none)'},"
      f" got {', '.join(unknown)}."
    )
  made = functools.partial(function, **options)
  log_probs = jax.ShapeDtypeStruct((2,), jnp.float32)
  # Tracing it once here raises range errors now instead of in the first training step.
  jax.eval_shape(made, log_probs, log_probs)
  return made


def check_share(name: str, value: float) -> None:
  """Raises ValueError unless `value` is in [0, 1]."""
  if not 0 <= value <= 1:
    raise ValueError(f"{name} must be in [0, 1], got {value}.")


def _log_mixture(log_a: jax.Array, log_b: jax.Array, share: float) -> jax.Array:
  """Returns log(share a + (1 - share) b), computed from logarithms."""
  if share == 0:
    return log_b
  if share == 1:
    return log_a
  return jnp.logaddexp(math.log(share) + log_a, math.log1p(-share) + log_b)


def _apart(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
  """Returns bool [..., vocab], true at entries that differ by more than rounding.

  A distance has a kink where p and q are equal, and rounding would choose the sign of the gradient.
  """
  rounding = 8 * jnp.finfo(log_q.dtype).eps * (1 + jnp.abs(log_p))
  return jnp.abs(log_q - log_p) > rounding


def _target_and_rest(log_p: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns log p_label and log(1 - p_label), each [...].

  1 - p_label is summed from its entries: the difference loses all digits for a confident teacher.
  """
  target = label_value(log_p, labels)
  return target, jax.nn.logsumexp(log_p, axis=-1, where=~is_label(log_p, labels))
