"""Divergences between student and teacher, one number per token, in nats.

p is the teacher's and q the student's softmax at `temperature`. All functions below share these
arguments, results and errors.

Args:
  student_logits: float, shape [..., vocab].
  teacher_logits: float, same shape, or a `TopK`: the divergence is then taken over its categories,
    see `top_k`. Detached: gradient flows to the student only.
  temperature: T > 0; one number, or one per token, shape [...]. Detached. The divergence has no
    factor T^2: see `compensation_factor`.
  where: bool [vocab], true at real vocabulary entries; values of the others are ignored. None
    counts all entries.

Returns:
  The divergence of each token, shape [...], at least float32 (float64 stays).

Raises:
  TypeError: logits that are not floating point, labels that are not integers, a `TopK` where the
    label's probability is needed.
  ValueError: shapes that do not match, a hyper-parameter out of range.

Logits may be -inf on either side: a probability of zero counts as exp(-100), so values and
gradients stay finite where the exact divergence is infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from jax.typing import ArrayLike

from egad_jax.losses import log_divergences
from egad_jax.losses.probabilities import check_labels, check_pair, log_probabilities
from egad_jax.losses.top_k import Teacher, TopK, check_dense, coarse_pair


def forward_kl(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """KL(teacher || student) = sum p log(p/q); makes the student cover the teacher's modes.

  Gradient (q - p) / T. Hinton et al., arXiv 1503.02531. Arguments: see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(forward_kl(z_s, z_t)),4), round(float(forward_kl(z_s, z_t, temperature=2.0)),4)
  (0.2988, 0.0885)
  """
  return log_divergences.forward_kl(*_log_q_p(student_logits, teacher_logits, temperature, where))


def reverse_kl(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """KL(student || teacher) = sum q log(q/p); makes the student seek the teacher's modes.

  Gradient q (log(q/p) - KL) / T. MiniLLM, arXiv 2306.08543. Arguments: see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(reverse_kl(z_s, z_t)),4)
  0.3351
  """
  return log_divergences.reverse_kl(*_log_q_p(student_logits, teacher_logits, temperature, where))


def jensen_shannon(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  beta: float = 0.5,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Generalized Jensen-Shannon: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1-beta) q.

  From GKD, arXiv 2306.13649, with its convention of beta. The value is continuous in beta, so it is
  0 at beta 0 and 1 and small near them: value / beta -> forward KL as beta -> 0, value / (1 - beta)
  -> reverse KL as beta -> 1. (TRL returns the two KLs themselves at the ends, a jump.) At beta 1/2
  the value is at most log 2.

  Other arguments: see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(jensen_shannon(z_s, z_t)),4)
  0.0759
  """
  log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
  return log_divergences.jensen_shannon(log_q, log_p, beta=beta)


def skew_forward_kl(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  alpha: float = 0.1,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """KL(p || alpha p + (1 - alpha) q), at most -log alpha; forward KL at alpha 0.

  DistiLLM, arXiv 2402.03898. Other arguments: see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(skew_forward_kl(z_s, z_t)),4)
  0.2412
  """
  log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
  return log_divergences.skew_forward_kl(log_q, log_p, alpha=alpha)


def skew_reverse_kl(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  alpha: float = 0.1,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """KL(q || (1 - alpha) p + alpha q), at most -log alpha; reverse KL at alpha 0.

  DistiLLM, arXiv 2402.03898; the gradient also flows through the mixture. Other arguments: see
  the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(skew_reverse_kl(z_s, z_t)),4)
  0.2565
  """
  log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
  return log_divergences.skew_reverse_kl(log_q, log_p, alpha=alpha)


def total_variation(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Total variation distance 1/2 sum |q - p|, in [0, 1] (not nats).

  f-distill, arXiv 2307.15190. Arguments: see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(total_variation(z_s, z_t)),4)
  0.347
  """
  return log_divergences.total_variation(
    *_log_q_p(student_logits, teacher_logits, temperature, where)
  )


def hellinger(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Hellinger distance sqrt(1/2 sum (sqrt q - sqrt p)^2), in [0, 1] (not nats).

  AdaKD's measure of a token's difficulty (arXiv 2510.11615). Because it is a distance, its gradient
  does not vanish as q approaches p; it suits measuring rather than training and is not in
  `DIVERGENCES`. Its square is a quarter of `alpha_beta` at (1/2, 1/2). At q = p the gradient is 0.
  Arguments: see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(hellinger(z_s, z_t)),4)
  0.2784
  """
  return log_divergences.hellinger(*_log_q_p(student_logits, teacher_logits, temperature, where))


def alpha_beta(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  alpha: float = 0.2,
  beta: float = 0.7,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Alpha-beta divergence, between forward KL at (1, 0) and reverse KL at (0, 1).

  -1/(ab) sum(p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)) with a = alpha, b = beta, and its limits
  where one of them is 0. Both must be 0 or, in float32, at least 0.01, because smaller values are
  lost to rounding; they must not both be 0. (1/2, 1/2) is 4 times the squared Hellinger distance,
  (1, 1) half the squared Euclidean distance. ABKD, arXiv 2505.04560. Other arguments: see the
  module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(alpha_beta(z_s, z_t)),4)
  0.375
  """
  log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
  return log_divergences.alpha_beta(log_q, log_p, alpha=alpha, beta=beta)


def adaptive_kl(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  head_mass: float = 0.5,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Forward and reverse KL, mixed per token by where p and q differ (AKL, arXiv 2404.02657).

  (g_head KL(p||q) + g_tail KL(q||p)) / (g_head + g_tail), g = sum |p - q| over the head, the
  smallest set of likeliest teacher tokens with mass >= head_mass, and over the rest; both
  detached. The entry that crosses head_mass is in the head (implementations differ there).
  Sorts the vocabulary. Other arguments: see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(adaptive_kl(z_s, z_t)),4)
  0.317
  """
  log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
  return log_divergences.adaptive_kl(log_q, log_p, head_mass=head_mass)


def token_wise_kl(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  *,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Forward and reverse KL, mixed per vocabulary entry (ToDi, arXiv 2505.16297).

  sum w p log(p/q) + (1 - w) q log(q/p), w = p / (p + q), detached. Its value is that of
  KL(p||q) + KL(q||p); the stop-gradient makes the method. Arguments: see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(token_wise_kl(z_s, z_t)),4)
  0.6339
  """
  return log_divergences.token_wise_kl(
    *_log_q_p(student_logits, teacher_logits, temperature, where)
  )


def target_class_kl(
  student_logits: ArrayLike,
  teacher_logits: ArrayLike,
  labels: ArrayLike,
  *,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """KL between (p_y, 1 - p_y) and (q_y, 1 - q_y), y the label (DKD, arXiv 2203.08679).

  forward_kl = target_class_kl + (1 - p_y) non_target_class_kl.

  Args:
    student_logits: float, shape [..., vocab].
    teacher_logits: float, same shape; not a `TopK`. Detached.
    labels: int, shape [...], in [0, vocab).
    temperature: T > 0, see the module.
    where: bool [vocab], see the module.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(target_class_kl(z_s, z_t, jnp.array(0))),4)
  0.2562
  """
  check_dense("target_class_kl", teacher_logits)
  log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
  return log_divergences.target_class_kl(log_q, log_p, check_labels(labels, log_q.shape[:-1]))


def non_target_class_kl(
  student_logits: ArrayLike,
  teacher_logits: ArrayLike,
  labels: ArrayLike,
  *,
  temperature: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> jax.Array:
  """KL(p || q) over all but the label, both renormalized there (DKD, arXiv 2203.08679).

  Its gradient at the label is zero. Arguments: as for `target_class_kl`.

  >>> import jax.numpy as jnp
  >>> z_s, z_t = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0, -1.0])
  >>> round(float(non_target_class_kl(z_s, z_t, jnp.array(0))), 4)
  0.1196
  """
  check_dense("non_target_class_kl", teacher_logits)
  log_q, log_p = _log_q_p(student_logits, teacher_logits, temperature, where)
  return log_divergences.non_target_class_kl(log_q, log_p, check_labels(labels, log_q.shape[:-1]))


DIVERGENCES: Mapping[str, Callable[..., jax.Array]] = {
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
"""The divergences that need no labels, by the name that `make_egad(divergence=...)` takes."""


def _log_q_p(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  temperature: ArrayLike,
  where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array]:
  if isinstance(teacher_logits, TopK):
    student_logits, teacher_logits = coarse_pair(student_logits, teacher_logits, where=where)
    where = None
  else:
    student_logits, teacher_logits = check_pair(student_logits, teacher_logits)
  return (
    log_probabilities(student_logits, temperature=temperature, where=where),
    log_probabilities(teacher_logits, temperature=temperature, where=where),
  )
