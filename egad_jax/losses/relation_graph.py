"""TRG (arXiv 2306.12442): distillation of the relations between the hard tokens of a row.

Only the abstract and third-party notes were available. The notes describe logit distillation plus
three terms on a graph of image tokens sampled over the batch: local, contextual (the notes'
"global") and inner (the abstract's "contextual loss"), and a contrastive temperature that falls
from high to low. Our choices are the hard tokens of a language model as nodes, a graph per row,
every value of `RelationGraph`, the form of the annealing, and what `token_graph` lists.

The loss, with n the number of target tokens and the terms of `token_graph` for each node, is

  sum T^2 D(T) / n + sum over nodes (w_l local + w_c contextual + w_i inner) / n_nodes
    + ce_weight sum CE / n
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from egad_jax.losses.probabilities import check_mask, check_progress, promote
from egad_jax.losses.reductions import masked_mean
from egad_jax.losses.token_graph import (
  DIRECTIONS,
  contextual_relation,
  inner_relation,
  local_relation,
)

TERMS = ("local", "contextual", "inner")


@dataclasses.dataclass(frozen=True)
class RelationGraph:
  """The graph of tokens and the weights of its terms; all values are ours, the notes give none.

  Attributes:
    nodes: largest number of hard tokens of a row that become nodes, >= 1. It bounds the cost, as
      the number of pairs in a row grows with its square. `relation_graph_loss` does not read it.
    neighbours: k >= 1, the number of edges of a node.
    sigma: width of the Gaussian edges, > 0, in squared distance of unit vectors (0 to 4); None
      takes the median over the teacher's edges of the graph.
    direction: direction of the local KL: "student_to_teacher" (as in the notes), KL(student ||
      teacher), or "teacher_to_student".
    local_weight: factor on the local term, >= 0. A term of weight 0 is absent from the program and
      its metric is 0.
    contextual_weight: factor on the contextual term, >= 0; with 0 there is no projector.
    inner_weight: factor on the inner term, >= 0.
    contextual_start: contextual temperature tau at the start of training, > 0.
    contextual_end: tau at the end of training, > 0; the notes only say that tau falls.
    inner_temperature: temperature of the similarity maps, > 0; see `token_graph.inner_relation`.
  """

  nodes: int = 64
  neighbours: int = 8
  sigma: float | None = None
  direction: str = "student_to_teacher"
  local_weight: float = 1.0
  contextual_weight: float = 1.0
  inner_weight: float = 1.0
  contextual_start: float = 1.0
  contextual_end: float = 0.1
  inner_temperature: float = 0.25

  def __post_init__(self) -> None:
    for name in ("nodes", "neighbours"):
      value = getattr(self, name)
      if not (isinstance(value, int | np.integer) and value >= 1):
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}.")
    if self.sigma is not None and not self.sigma > 0:
      raise ValueError(f"sigma must be > 0 or None, got {self.sigma}.")
    for name in (f"{term}_weight" for term in TERMS):
      if not getattr(self, name) >= 0:
        raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}.")
    for name in ("contextual_start", "contextual_end", "inner_temperature"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")
    if self.direction not in DIRECTIONS:
      raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {self.direction!r}.")

  def weights(self) -> dict[str, float]:
    """Returns the weights that are not 0, by the name of the term."""
    weights = {term: getattr(self, f"{term}_weight") for term in TERMS}
    return {term: weight for term, weight in weights.items() if weight}

  def temperature(self, elapsed: ArrayLike) -> jax.Array:
    """Returns tau = start (end / start)^elapsed, detached; it changes by the same factor each step.

    >>> [round(float(RelationGraph().temperature(e)), 4) for e in (0.0, 0.5, 1.0)]
    [1.0, 0.3162, 0.1]
    """
    elapsed = check_progress("elapsed", elapsed)
    return self.contextual_start * (self.contextual_end / self.contextual_start) ** elapsed


def relation_graph_loss(
  student_features: ArrayLike,
  teacher_features: ArrayLike,
  mask: ArrayLike,
  *,
  elapsed: ArrayLike,
  projected_student_features: ArrayLike | None = None,
  options: RelationGraph = RelationGraph(),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The graph terms of TRG, averaged over the valid nodes of all graphs.

  Each leading index is one graph; to relate tokens across a batch, as the notes describe for
  images, gather them into one graph. In the notes the inner term relates tokens of one instance,
  which needs one graph per instance.

  Args:
    student_features: hidden states, float, shape [..., nodes, Ds].
    teacher_features: hidden states, float, shape [..., nodes, Dt]. Detached.
    mask: bool, shape [..., nodes], true at valid nodes; features may be NaN elsewhere.
    elapsed: how far along the training the step is, a scalar: 0 at the first step, 1 at the last.
      It sets the contextual tau.
    projected_student_features: float, shape [..., nodes, Dt], for the contextual term; None takes
      `student_features`, for Ds = Dt or a contextual weight of 0.
    options: the graph and the weights of its terms; its `nodes` is not read.

  Returns:
    The loss, a scalar, at least float32 (0 when nothing is masked in), and metrics, detached
    scalars: local, contextual and inner, unweighted means over the valid nodes.

  Raises:
    TypeError: features are not floating point.
    ValueError: shapes that do not match.

  >>> features = jax.random.normal(jax.random.key(0), (2, 6, 4))
  >>> loss, metrics = relation_graph_loss(features, features, jnp.ones((2, 6), bool), elapsed=0.0)
  >>> round(float(metrics["local"]), 6), round(float(metrics["inner"]), 6)
  (0.0, 0.0)
  """
  student, teacher = (
    promote("student_features", student_features),
    promote("teacher_features", teacher_features),
  )
  if student.ndim < 2 or teacher.shape[:-1] != student.shape[:-1]:
    raise ValueError(
      "student_features and teacher_features must have shapes [..., nodes, dim] that differ in dim"
      f" alone, got {student.shape} and {teacher.shape}."
    )
  mask = check_mask(mask, student.shape[:-1])
  elapsed = check_progress("elapsed", elapsed)
  projected = student
  if projected_student_features is not None:
    projected = promote("projected_student_features", projected_student_features)
  if options.contextual_weight and projected.shape != teacher.shape:
    raise ValueError(
      "projected_student_features must have the shape of teacher_features,"
      f" {teacher.shape}, got {projected.shape}; project the student's features, or set"
      " contextual_weight to 0."
    )
  # Features outside the mask may be NaN; masking later would leave 0 * NaN in the gradient.
  hidden = [jnp.where(mask[..., None], x, 0) for x in (student, teacher, projected)]
  terms = graph_terms(hidden[0], hidden[1], hidden[2], mask, elapsed, options)
  means = {name: masked_mean(term, mask) for name, term in terms.items()}
  weights = options.weights()
  zero = jnp.zeros((), jnp.result_type(student, teacher))
  loss = sum((weight * means[name] for name, weight in weights.items()), zero)
  return loss, {name: jax.lax.stop_gradient(means.get(name, zero)) for name in TERMS}


def graph_terms(
  student: jax.Array,
  teacher: jax.Array,
  projected: jax.Array,
  mask: jax.Array,
  elapsed: ArrayLike,
  options: RelationGraph,
) -> dict[str, jax.Array]:
  """Returns {term: [..., nodes]} for terms of nonzero weight; features are 0 outside the mask."""
  make = {
    "local": lambda: local_relation(
      student,
      teacher,
      mask,
      neighbours=options.neighbours,
      sigma=options.sigma,
      direction=options.direction,
    ),
    "contextual": lambda: contextual_relation(
      projected, teacher, mask, temperature=options.temperature(elapsed)
    ),
    "inner": lambda: inner_relation(student, teacher, mask, temperature=options.inner_temperature),
  }
  return {name: make[name]() for name in options.weights()}
