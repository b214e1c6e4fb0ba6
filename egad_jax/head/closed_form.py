"""Value and gradient of a steered forward KL from logits, in three passes and without autodiff.

With d = z - max z, T the temperature, a the weight of the divergence and b that of the
cross-entropy, all of a token:

  KL = sum p (d_teacher - d_student) / T - log sum exp(d_teacher / T) + log sum exp(d_student / T)
  gradient = a / T (q - p) + b (q_1 - [label]),   p, q at T, q_1 at 1

The first pass sums what the teacher's entropy needs, the second what T makes of both rows, the
third writes the gradient. Logits come out of a matmul, so they are finite.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp

from egad_jax.losses.entropy_guided import EntropyGuidedLoss
from egad_jax.losses.guidance import TokenGuidance
from egad_jax.losses.probabilities import is_label
from egad_jax.types import Stats


class GradientRows(NamedTuple):
  """Per token [n], what the gradient reads besides the logits.

  Attributes:
    inverse_temperature: 1 / T.
    kl: a / T; 0 outside the mask.
    cross_entropy: b; 0 outside the mask and where the label is no vocabulary id.
  """

  inverse_temperature: jax.Array
  kl: jax.Array
  cross_entropy: jax.Array


def has_closed_form(token_loss: Any) -> TypeGuard[EntropyGuidedLoss]:
  """Whether a token loss is a forward KL that is steered by the teacher's entropy."""
  return isinstance(token_loss, EntropyGuidedLoss) and token_loss.is_forward_kl


def entropy_of_sums(total: jax.Array, weighted: jax.Array) -> jax.Array:
  """Entropy in nats from sum exp(d) and sum exp(d) d, with d = z - max z; never negative."""
  return jnp.log(total) - weighted / total


def is_entry(labels: jax.Array, vocab: int) -> jax.Array:
  """Whether a label is an entry of the vocabulary; one that is not costs nothing."""
  return (labels >= 0) & (labels < vocab)


def gradient_rows(
  token_loss: EntropyGuidedLoss,
  guidance: TokenGuidance,
  labels: jax.Array,
  mask: jax.Array,
  vocab: int,
  dtype: Any,
) -> GradientRows:
  """What a guidance means for the gradient of each token of the mask."""
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
) -> tuple[jax.Array, Stats, jax.Array]:
  """Loss and stats of each token, and the gradient of the masked loss.

  Args:
    token_loss: with `is_forward_kl`.
    student_logits: [n, vocab], at least float32, soft cap applied.
    teacher_logits: the same of the teacher.
    labels: int [n].
    mask: bool [n], false where the gradient shall be zero.
    context: of the token loss.

  Returns:
    (loss [n], stats {name: [n]}, gradient with respect to `student_logits` [n, vocab]).
  """
  teacher = teacher_logits - jnp.max(teacher_logits, axis=-1, keepdims=True)
  weights = jnp.exp(teacher)
  teacher_entropy = entropy_of_sums(jnp.sum(weights, axis=-1), jnp.sum(weights * teacher, axis=-1))
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
