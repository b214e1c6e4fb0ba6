"""Random inputs for heads, and the gradients that they should have."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.heads import Inputs, Settings, distillation_sum, token_loss_of
from egad_jax import methods
from egad_jax.head import dense_head

# Standard deviation of the logits before rounding, about that of real models.
LOGIT_STD = 4.0


class Sizes(NamedTuple):
  """Shape of a problem."""

  tokens: int
  vocab: int
  teacher_dim: int
  student_dim: int

  @property
  def minimum_flops(self) -> int:
    """FLOPs of the four matrix products that no head avoids: 2 N V (Dt + 3 Ds)."""
    return 2 * self.tokens * self.vocab * (self.teacher_dim + 3 * self.student_dim)


def context(vocab: int) -> methods.Context:
  """A context of EGAD mid-way, after seeing entropies from 0 to log(vocab), all alike."""
  method = methods.make_egad(branch=None)
  entropy = jnp.linspace(0, math.log(vocab), 256, dtype=jnp.float32)
  state = method.observe(method.init_state(), {"teacher_entropy": entropy}, jnp.ones(256, bool))
  return methods.Context(state, jnp.float32(0.3), jnp.float32(0.1))


def random_inputs(
  sizes: Sizes, *, difference: float | None = None, dtype: Any = jnp.bfloat16, seed: int = 0
) -> Inputs:
  """Inputs whose logits have a standard deviation of 4, every place a target.

  Args:
    sizes: of the problem.
    difference: standard deviation of the teacher's logits minus the student's; needs a teacher
      wider than the student. None: independent of each other.
    dtype: what the float arrays are rounded to.
    seed: of the random numbers.
  """
  rng = np.random.default_rng(seed)

  def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)

  tokens, vocab, teacher_dim, student_dim = sizes
  student_hidden = normal(tokens, student_dim)
  student_unembedding = np.float32(LOGIT_STD / math.sqrt(student_dim)) * normal(vocab, student_dim)
  teacher_hidden = normal(tokens, teacher_dim)
  teacher_unembedding = np.float32(LOGIT_STD / math.sqrt(teacher_dim)) * normal(vocab, teacher_dim)
  if difference is not None:
    # The student's own features and rows, and further ones that make the difference.
    more = teacher_dim - student_dim
    teacher_hidden[:, :student_dim] = student_hidden
    teacher_unembedding[:, :student_dim] = student_unembedding
    teacher_unembedding[:, student_dim:] = np.float32(difference / math.sqrt(more)) * normal(
      vocab, more
    )
  labels = rng.integers(0, vocab, tokens, np.int32)
  return Inputs(
    jnp.asarray(student_hidden, dtype),
    jnp.asarray(student_unembedding, dtype),
    jnp.asarray(teacher_hidden, dtype),
    jnp.asarray(teacher_unembedding, dtype),
    jnp.asarray(labels),
    jnp.ones(tokens, bool),
    context(vocab),
  )


def reference_gradients(
  inputs: Inputs, loss: str, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
  """The gradients of the inputs as they are, computed in float64 with all logits at once.

  Args:
    inputs: of any float dtype; their values are exact in float64.
    loss: "egad" or "kd".
    settings: of the loss.
  """
  host = jax.tree.map(np.asarray, inputs)
  with jax.enable_x64(True):
    wide = [jnp.asarray(x.astype(np.float64)) for x in host[:4]]
    rest = jax.tree.map(jnp.asarray, host[4:])

    def objective(hidden, unembedding, teacher, rest):
      if loss == "kd":
        student_logits, teacher_logits = hidden @ unembedding.T, teacher[0] @ teacher[1].T
        return distillation_sum(student_logits, teacher_logits, rest[0], rest[1], settings)
      head = dense_head(token_loss_of(loss, settings))
      return head(hidden, unembedding, teacher[0], teacher[1], rest[0], rest[1], {}, rest[2])[0]

    # All of them arguments: XLA would spend minutes folding constants.
    gradients = jax.jit(jax.grad(objective, argnums=(0, 1)))(*wide[:2], wide[2:], rest)
    return np.asarray(gradients[0]), np.asarray(gradients[1])


def relative_error(found: Any, expected: np.ndarray) -> float:
  """Frobenius norm of the difference over that of what is expected."""
  difference = np.asarray(found, np.float64) - expected
  return float(np.linalg.norm(difference) / np.linalg.norm(expected))
