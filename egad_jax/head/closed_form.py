"""Value and gradient of an entropy-guided forward KL, in three passes over the logits, no autodiff.

For each token, with d = z - max z, T the temperature, a the weight of the divergence and b the
weight of the cross-entropy:

  KL = sum p (d_teacher - d_student) / T - log sum exp(d_teacher / T) + log sum exp(d_student / T)
  gradient = a / T (q - p) + b (q_1 - [label]),   p, q at T, q_1 at 1

The first pass takes the sums for the teacher's entropy, which gives T; the second takes the sums of
both models at T; the third writes the gradient. The student's logits come out of a matmul, so they
are finite; the teacher's may be -inf.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp

from egad_jax.losses.entropy_guided import EntropyGuidedLoss
from egad_jax.losses.guidance import TokenGuidance
from egad_jax.losses.probabilities import is_label
from egad_jax.types import Stats

# The d of an entry of probability 0: exp(d / T) is 0, and so is its product with d, which with a d
# of -inf would be NaN.
_NOTHING = -1e30


class GradientRows(NamedTuple):
  """The numbers per token, [n] each, that the gradient needs besides the logits.

  Attributes:
    inverse_temperature: 1 / T.
    kl: a / T, the factor of the divergence's gradient; 0 outside the mask.
    cross_entropy: b, the factor of the cross-entropy's gradient; 0 outside the mask and where the
      label is not a vocabulary id.
  """

  inverse_temperature: jax.Array
  kl: jax.Array
  cross_entropy: jax.Array


def has_closed_form(token_loss: Any) -> TypeGuard[EntropyGuidedLoss]:
  """Whether a token loss is a forward KL guided by the teacher's entropy."""
  if not isinstance(token_loss, EntropyGuidedLoss):
    return False
  return token_loss.is_forward_kl and token_loss.compensation is None


def entropy_of_sums(total: jax.Array, weighted: jax.Array) -> jax.Array:
  """Entropy in nats, >= 0: `total` is sum exp(d), `weighted` sum exp(d) d, with d = z - max z."""
  return jnp.log(total) - weighted / total


def is_entry(labels: jax.Array, vocab: int) -> jax.Array:
  """Whether each label is a vocabulary entry, bool [n]; other labels have no cross-entropy."""
  return (labels >= 0) & (labels < vocab)


def gradient_rows(
  token_loss: EntropyGuidedLoss,
  guidance: TokenGuidance,
  labels: jax.Array,
  mask: jax.Array,
  vocab: int,
  dtype: Any,
) -> GradientRows:
  """Returns the numbers that the gradient of each token needs, from the tokens' guidance."""
  one = jnp.ones(labels.shape, dtype)
  inverse = one / guidance.temperature
  return GradientRows(
    inverse,
    jnp.where(mask, token_loss.weighted(one, guidance) * inverse, 0),
    jnp.where(mask & is_entry(labels, vocab), one * token_loss.ce_weight, 0),
  )


def loss_and_gradient(
  token_loss: EntropyGuidedLoss,
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  context: Any,
  teacher_entropy: jax.Array | None = None,
) -> tuple[jax.Array, Stats, jax.Array]:
  """Computes loss and stats of each token, and the gradient of the loss summed over the mask.

  Args:
    token_loss: a loss that `has_closed_form`.
    student_logits: [n, vocab], at least float32, soft cap applied.
    teacher_logits: [n, vocab], at least float32, soft cap applied; -inf for a probability of 0.
    labels: int [n], the token that each row of logits predicts.
    mask: bool [n], false at tokens whose gradient is zero.
    context: the pytree that `token_loss.guide` reads.
    teacher_entropy: the teacher's entropy at T = 1 in nats, [n]; None if it is that of
      `teacher_logits`.

  Returns:
    (loss [n], stats {name: [n]}, gradient with respect to `student_logits` [n, vocab]).
  """
  teacher = teacher_logits - jnp.max(teacher_logits, axis=-1, keepdims=True)
  teacher = jnp.maximum(teacher, _NOTHING)
  if teacher_entropy is None:
    weights = jnp.exp(teacher)
    sums = jnp.sum(weights, axis=-1), jnp.sum(weights * teacher, axis=-1)
    teacher_entropy = entropy_of_sums(*sums)
  guidance = token_loss.guide(teacher_entropy, context)
  vocab = student_logits.shape[-1]
  rows = gradient_rows(token_loss, guidance, labels, mask, vocab, student_logits.dtype)
  inverse = rows.inverse_temperature[:, None]
  student = student_logits - jnp.max(student_logits, axis=-1, keepdims=True)
  at_label = is_label(student, labels)
  p, q, q_1 = jnp.exp(teacher * inverse), jnp.exp(student * inverse), jnp.exp(student)
  sum_p, sum_q, sum_1 = (jnp.sum(x, axis=-1) for x in (p, q, q_1))
  cross = jnp.sum(p * (teacher - student), axis=-1)
  label_logit = jnp.sum(jnp.where(at_label, student, 0), axis=-1)
  loss, stats = token_loss.of_sums(
    guidance,
    divergence=rows.inverse_temperature * cross / sum_p - jnp.log(sum_p) + jnp.log(sum_q),
    cross_entropy=jnp.where(is_entry(labels, vocab), jnp.log(sum_1) - label_logit, 0),
    teacher_entropy=teacher_entropy,
    student_entropy=entropy_of_sums(sum_1, jnp.sum(q_1 * student, axis=-1)),
  )
  gradient = rows.kl[:, None] * (q / sum_q[:, None] - p / sum_p[:, None])
  if token_loss.ce_weight:
    gradient += rows.cross_entropy[:, None] * (q_1 / sum_1[:, None] - at_label)
  return loss, stats, gradient
