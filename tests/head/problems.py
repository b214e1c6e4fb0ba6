"""Small random problems for the head: hidden states, unembeddings, labels, an uneven mask."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egad_jax import losses, methods


class Problem(NamedTuple):
  student_hidden: jax.Array
  student_unembedding: jax.Array
  teacher_hidden: jax.Array
  teacher_unembedding: jax.Array
  labels: jax.Array
  mask: jax.Array


def random_problem(
  seed: int = 0, *, batch: int = 4, seq: int = 10, vocab: int = 37, dtype=np.float32
) -> Problem:
  rng = np.random.default_rng(seed)
  student_dim, teacher_dim = 8, 12
  arrays = (
    rng.normal(size=(batch, seq, student_dim)),
    rng.normal(size=(vocab, student_dim)),
    rng.normal(size=(batch, seq, teacher_dim)),
    rng.normal(size=(vocab, teacher_dim)),
  )
  labels = rng.integers(0, vocab, size=(batch, seq))
  mask = rng.random((batch, seq)) < 0.7
  return Problem(*(jnp.asarray(a, dtype) for a in arrays), jnp.asarray(labels), jnp.asarray(mask))


def token_loss(student_logits, teacher_logits, labels, extras, context):
  """Forward KL at a per-token temperature plus cross-entropy, written independently of losses/."""
  temperature = context["base"] * (1 + extras["hardness"])
  p = jax.nn.softmax(teacher_logits / temperature[:, None])
  log_q = jax.nn.log_softmax(student_logits / temperature[:, None])
  kl = jnp.sum(p * (jax.nn.log_softmax(teacher_logits / temperature[:, None]) - log_q), -1)
  log_q1 = jax.nn.log_softmax(student_logits)
  cross_entropy = -jnp.take_along_axis(log_q1, labels[:, None], -1)[:, 0]
  loss = temperature**2 * kl + 0.3 * cross_entropy
  return loss, {"kl": kl, "cross_entropy": cross_entropy}


def extras_for(problem: Problem) -> dict[str, jax.Array]:
  values = np.linspace(0, 1, problem.mask.size, dtype=np.float32).reshape(problem.mask.shape)
  return {"hardness": jnp.asarray(values)}


def value_and_gradients(head, problem: Problem, **overrides):
  """Compiled once per head."""
  return _value_and_gradients(head, problem._replace(**overrides))


@functools.partial(jax.jit, static_argnames="head")
def _value_and_gradients(head, problem: Problem):
  def objective(student_hidden, student_unembedding):
    return head(
      student_hidden,
      student_unembedding,
      *problem[2:],
      extras_for(problem),
      {"base": jnp.float32(1.3)},
    )

  return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(*problem[:2])


_filled = jax.jit(
  lambda entropy, mask: losses.EntropyDistribution.init().update(entropy, mask, half_life=1e6)
)


def filled_context() -> methods.Context:
  """A third of the way, with entropies of many sizes in the running distribution."""
  distribution = _filled(np.linspace(0.01, 6.0, 64, dtype=np.float32), np.ones(64, bool))
  return methods.Context(methods.State(distribution), jnp.float32(0.3), jnp.float32(0.3))


def half_problem(vocab: int, *, seq: int = 70, padding: int = 0) -> Problem:
  """bfloat16 hidden states of sizes that the kernels serve."""
  rng = np.random.default_rng(0)

  def normal(*shape, scale=1.0):
    return np.asarray(scale * rng.normal(size=shape), jnp.bfloat16)

  rows = vocab + padding
  return Problem(
    normal(2, seq, 128, scale=0.3),
    normal(rows, 128).astype(np.float32),
    normal(2, seq, 256, scale=0.3),
    normal(rows, 256),
    rng.integers(0, vocab, size=(2, seq), dtype=np.int32),
    rng.random((2, seq)) < 0.8,
  )
