"""AEKT: how much of the teacher's confidence in one class the student is made to learn.

Only descriptions of adaptive explicit knowledge transfer (arXiv 2409.01679) were available: an
implicit term on the other classes as in DKD, an explicit term on the target class that adapts to
the ratio of the models' confidences, and separate heads in series for labels and teacher. The
formulas are OUR RECONSTRUCTION, not the paper's:

  T^2 (I + weight sg(clip((p_y / q_y)^gamma, 1/bound, bound)) TCKD),   y the target class,

with TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)), and I either NCKD, the KL over all classes but y,
where both distributions are renormalized, or (1 - p_y) NCKD. At gamma = 0 and weight = 1 the two
choices of I give DKD(1, 1) (arXiv 2203.08679) and plain KD.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from egad_jax.losses.entropy import entropy_of
from egad_jax.losses.in_batch import in_batch_inputs, in_batch_metrics
from egad_jax.losses.log_divergences import non_target_class_kl, target_class_kl
from egad_jax.losses.probabilities import (
  check_labels,
  is_label,
  label_value,
  log_probabilities,
)
from egad_jax.losses.reductions import masked_mean
from egad_jax.losses.temperature import check_temperature
from egad_jax.losses.terms import LogPair, at_temperature, check_ce_weight, log_pair, token_terms
from egad_jax.losses.top_k import check_dense
from egad_jax.types import Stats

IMPLICIT = ("decoupled", "coupled")
TARGETS = ("label", "teacher")


@dataclasses.dataclass(frozen=True)
class ExplicitKnowledge:
  """The form of AEKT's terms; all options and values are ours, see the module.

  Attributes:
    weight: factor on the explicit term, lambda >= 0; 0 leaves the implicit term alone.
    gamma: exponent of the confidence ratio p_y / q_y, >= 0; 0 turns the adaptation off.
    bound: limit, >= 1, of the ratio's power, which is clipped to [1/bound, bound].
    implicit: "decoupled" takes NCKD as the implicit term; "coupled" takes (1 - p_y) NCKD, as KD.
    target: the target class y: "label", or "teacher" for the teacher's most probable token.
    serial: whether the teacher acts on a linear map of the student's hidden states and the labels
      on the hidden states themselves. In the paper the second head in series maps logits, for which
      vocab^2 parameters are too many here. The map starts as the identity, is trained and is never
      exported.
  """

  weight: float = 1.0
  gamma: float = 1.0
  bound: float = 10.0
  implicit: str = "decoupled"
  target: str = "label"
  serial: bool = False

  def __post_init__(self) -> None:
    for name in ("weight", "gamma"):
      if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
        raise ValueError(f"{name} must be >= 0 and finite, got {getattr(self, name)}.")
    if not (math.isfinite(self.bound) and self.bound >= 1):
      raise ValueError(f"bound must be >= 1 and finite, got {self.bound}.")
    for name, allowed in {"implicit": IMPLICIT, "target": TARGETS}.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}."
        )


def explicit_knowledge_loss(
  student_logits: ArrayLike,
  teacher_logits: ArrayLike,
  labels: ArrayLike,
  mask: ArrayLike,
  *,
  explicit_knowledge: ExplicitKnowledge = ExplicitKnowledge(),
  serial_logits: ArrayLike | None = None,
  temperature: float = 1.0,
  ce_weight: float = 0.0,
  where: ArrayLike | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """AEKT (arXiv 2409.01679; our reconstruction, see the module) on whole logits.

  Args:
    student_logits: float, shape [..., vocab].
    teacher_logits: float, same shape. Detached.
    labels: int, shape [...], already aligned: the token that the logits at its index predict.
    mask: bool, shape [...], true at tokens that count; logits may be NaN elsewhere.
    explicit_knowledge: the form of the terms; `serial` requires `serial_logits`.
    serial_logits: the student's logits after the serial map, same shape; None for no map. If given,
      the teacher acts on these and the labels on `student_logits`, and ce_weight must be > 0.
    temperature: T of both terms and of the ratio, with T^2 compensation; > 0.
    ce_weight: factor, >= 0, on the cross-entropy with the labels; 0 leaves it out of the loss.
    where: bool [vocab], true at real vocabulary entries; None counts all.

  Returns:
    The loss, a scalar (0 when nothing is masked in), and the metrics of `in_batch_metrics`;
    weight_mean is the mean weight of the explicit term, lambda times the clipped ratio.

  Raises:
    TypeError: wrong dtype.
    ValueError: shapes that do not match, names or ranges.

  >>> student, teacher = jnp.array([[1.0, 1.0, 1.0, 0.0]]), jnp.array([[2.0, 1.0, 0.0, -1.0]])
  >>> labels, mask = jnp.array([0]), jnp.array([True])
  >>> loss, metrics = explicit_knowledge_loss(student, teacher, labels, mask)
  >>> round(float(loss), 4), round(float(metrics["weight_mean"]), 4)
  (0.6752, 2.1686)
  >>> kd = ExplicitKnowledge(gamma=0.0, implicit="coupled")
  >>> loss, _ = explicit_knowledge_loss(student, teacher, labels, mask, explicit_knowledge=kd)
  >>> round(float(loss), 4)
  0.2988
  """
  if explicit_knowledge.serial and serial_logits is None:
    raise ValueError("explicit_knowledge.serial needs serial_logits, got None.")
  check_aekt(serial_logits is not None, temperature, ce_weight)
  check_dense("explicit_knowledge_loss", teacher_logits)
  inputs = (teacher_logits, labels, mask, where)
  student_logits, *rest, mask = in_batch_inputs(student_logits, *inputs)
  taught = student_logits if serial_logits is None else in_batch_inputs(serial_logits, *inputs)[0]
  pair = log_pair(taught, rest[0])
  value, weight = explicit_knowledge_value(pair, rest[1], explicit_knowledge, temperature)
  loss, stats = token_terms(
    pair,
    rest[1],
    value,
    ce_weight=ce_weight if serial_logits is None else 0.0,
    temperature=temperature,
    weight=weight,
  )
  if serial_logits is not None:
    label_stats = label_stats_of(student_logits, rest[1])
    loss = loss + ce_weight * label_stats["cross_entropy"]
    stats = stats | jax.lax.stop_gradient(label_stats)
  return masked_mean(loss, mask), in_batch_metrics(stats, mask)


def explicit_knowledge_value(
  pair: LogPair, labels: ArrayLike, options: ExplicitKnowledge, temperature: float
) -> tuple[jax.Array, jax.Array]:
  """Returns the distillation loss of each token and the explicit term's weight, detached; [...]."""
  labels = check_labels(labels, pair.log_q.shape[:-1])
  log_q, log_p = at_temperature(pair, temperature)
  if options.target == "teacher":
    labels = jnp.argmax(log_p, axis=-1)
  implicit = non_target_class_kl(log_q, log_p, labels)
  if options.implicit == "coupled":
    # 1 - p_y is summed from its entries: the difference loses all digits for a confident teacher.
    implicit = implicit * jnp.sum(jnp.exp(log_p), axis=-1, where=~is_label(log_p, labels))
  # The logarithm is clipped: the ratio itself overflows where the student rules the target out.
  log_ratio = options.gamma * (label_value(log_p, labels) - label_value(log_q, labels))
  limit = math.log(options.bound)
  weight = options.weight * jax.lax.stop_gradient(jnp.exp(jnp.clip(log_ratio, -limit, limit)))
  value = implicit + weight * target_class_kl(log_q, log_p, labels)
  return temperature**2 * value, weight


def label_stats_of(student_logits: jax.Array, labels: jax.Array) -> Stats:
  """Returns the stats of the logits that the labels act on; the cross-entropy has its gradient."""
  log_q = log_probabilities(student_logits)
  labels = check_labels(labels, log_q.shape[:-1])
  return {"cross_entropy": -label_value(log_q, labels), "student_entropy": entropy_of(log_q)}


def check_aekt(serial: bool, temperature: float, ce_weight: float) -> None:
  check_ce_weight(ce_weight)
  check_temperature("temperature", temperature)
  if serial and ce_weight == 0:
    raise ValueError(
      "a serial head needs ce_weight > 0, got 0: without labels nothing trains the head that is"
      " exported."
    )
