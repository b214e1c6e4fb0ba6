"""What the methods' in-batch forms share: masking of the inputs, and metrics of the tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import (
  check_labels,
  check_logits,
  check_mask,
  check_pair,
  hide_columns,
)
from egad_jax.losses.reductions import masked_mean
from egad_jax.losses.top_k import Teacher, TopK, check_top_k, mask_top_k
from egad_jax.types import Stats


def in_batch_inputs(
  student_logits: ArrayLike,
  teacher_logits: Teacher,
  labels: ArrayLike,
  mask: ArrayLike,
  where: ArrayLike | None = None,
) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
  """Checks the inputs and replaces logits outside the mask, which may be NaN, by zeros.

  Args:
    student_logits: float, shape [..., vocab].
    teacher_logits: float, same shape; or a `TopK` of them, made with the same `where`.
    labels: int, shape [...], the token that the logits at its index predict.
    mask: bool, shape [...], true at tokens that count.
    where: bool [vocab], true at real vocabulary entries; None counts all.

  Returns:
    (student_logits, teacher_logits, labels, mask): logits are 0 outside the mask and -inf at
    entries that `where` hides, and the teacher's are detached.

  Raises:
    TypeError: wrong dtype.
    ValueError: shapes that do not match.
  """
  teacher: Any
  if isinstance(teacher_logits, TopK):
    student_logits = check_logits("student_logits", student_logits)
    teacher = check_top_k(teacher_logits, student_logits.shape)
  else:
    student_logits, teacher = check_pair(student_logits, teacher_logits)
  mask = check_mask(mask, student_logits.shape[:-1])
  labels = check_labels(labels, mask.shape)

  # Zeroing the terms afterwards is not enough: 0 * NaN would come back through the gradient.
  def safe(logits: jax.Array) -> jax.Array:
    return hide_columns(jnp.where(mask[..., None], logits, 0), where)

  teacher = mask_top_k(teacher, mask) if isinstance(teacher, TopK) else safe(teacher)
  return safe(student_logits), teacher, labels, mask


def in_batch_metrics(stats: Stats, mask: jax.Array) -> dict[str, jax.Array]:
  """Returns means of the stats over the masked tokens, detached scalars.

  Args:
    stats: stats from `terms.token_terms`, each [...].
    mask: bool, shape [...], true at tokens that count.

  Returns:
    distillation_loss, cross_entropy, teacher_entropy, student_entropy (nats), temperature_mean,
    weight_mean and hard_fraction.
  """
  renamed = {"temperature": "temperature_mean", "weight": "weight_mean", "hard": "hard_fraction"}
  names = ("distillation_loss", "cross_entropy", "teacher_entropy", "student_entropy", *renamed)
  return {renamed.get(name, name): masked_mean(stats[name], mask) for name in names}
