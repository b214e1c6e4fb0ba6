"""EGAD's losses from plain JAX: no Flax, no config, no trainer.

A bigram teacher with three kinds of tokens (certain, undecided, in between) is distilled into a
low-rank student by gradient descent, first with the in-batch `egad_loss`, then through the `Method`
that training uses, which places tokens against a running distribution. Runs in seconds on a CPU:

  python examples/losses_from_plain_jax.py
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from egad_jax import losses, methods

VOCAB, RANK, BATCH, SEQ, STEPS = 64, 32, 8, 32, 150
LEARNING_RATE = 5.0

Params = dict[str, jax.Array]


def make_teacher(key: jax.Array) -> jax.Array:
  """Returns next-token logits for each token, [VOCAB, VOCAB]; rows differ in their entropy."""
  sharpness = jnp.repeat(jnp.array([0.5, 2.0, 8.0, 2.0]), VOCAB // 4)
  return sharpness[:, None] * jax.random.normal(key, (VOCAB, VOCAB))


def init_student(key: jax.Array) -> Params:
  """Returns the two factors of a [VOCAB, VOCAB] table of logits."""
  keys = jax.random.split(key)
  return {
    "embedding": jax.random.normal(keys[0], (VOCAB, RANK)) / RANK**0.5,
    "unembedding": jax.random.normal(keys[1], (RANK, VOCAB)) / RANK**0.5,
  }


def apply_student(params: Params, tokens: jax.Array) -> jax.Array:
  """Returns logits [batch, seq, VOCAB] of the token after each of `tokens` [batch, seq]."""
  return params["embedding"][tokens] @ params["unembedding"]


def sample_batch(key: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns tokens, aligned labels and mask, each [BATCH, SEQ]; the last quarter is padding."""
  token_key, label_key = jax.random.split(key)
  tokens = jax.random.randint(token_key, (BATCH, SEQ), 0, VOCAB)
  labels = jax.random.categorical(label_key, teacher[tokens])
  mask = jnp.broadcast_to(jnp.arange(SEQ)[None, :] < 3 * SEQ // 4, (BATCH, SEQ))
  return tokens, labels, mask


def descend(params: Params, gradient: Params) -> Params:
  """Returns the parameters after one step of gradient descent."""
  return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)


@jax.jit
def in_batch_step(
  params: Params, teacher: jax.Array, key: jax.Array, progress: jax.Array
) -> tuple[Params, dict[str, jax.Array]]:
  """One step with `egad_loss`: each token is placed among the tokens of its batch."""
  tokens, labels, mask = sample_batch(key, teacher)

  def objective(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
    return losses.egad_loss(
      apply_student(params, tokens),
      teacher[tokens],
      labels,
      mask,
      progress=progress,
      ce_weight=0.1,
    )

  gradient, metrics = jax.grad(objective, has_aux=True)(params)
  return descend(params, gradient), metrics


@functools.partial(jax.jit, static_argnames="method")
def running_step(
  carry: tuple[Params, methods.State],
  teacher: jax.Array,
  key: jax.Array,
  progress: jax.Array,
  *,
  method: methods.Method,
) -> tuple[Params, methods.State]:
  """One step with a `Method`: tokens are independent, statistics are an explicit state."""
  params, state = carry
  tokens, labels, mask = sample_batch(key, teacher)
  context = methods.Context(state, progress, elapsed=progress)

  def objective(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits = apply_student(params, tokens)
    assert isinstance(method.loss, methods.TokenLoss)
    loss, stats = method.loss.function(logits, teacher[tokens], labels, {}, context)
    return losses.masked_mean(loss, mask), stats

  gradient, stats = jax.grad(objective, has_aux=True)(params)
  return descend(params, gradient), method.update(state, stats, mask, progress)


def divergence(params: Params, teacher: jax.Array) -> float:
  """Returns the mean forward KL to the teacher over all tokens, in nats."""
  logits = apply_student(params, jnp.arange(VOCAB)[None, :])
  return float(losses.forward_kl(logits, teacher[None]).mean())


def main() -> None:
  """Distils twice and prints the forward KL before and after."""
  teacher_key, student_key, data_key = jax.random.split(jax.random.key(0), 3)
  teacher, student = make_teacher(teacher_key), init_student(student_key)
  keys = jax.random.split(data_key, STEPS)
  print(f"before    forward KL {divergence(student, teacher):.3f} nats")

  params = student
  for step, key in enumerate(keys):
    params, metrics = in_batch_step(params, teacher, key, jnp.float32(step / STEPS))
  print(
    f"in-batch  forward KL {divergence(params, teacher):.3f} nats, last temperature"
    f" {float(metrics['temperature_mean']):.2f}"
  )

  method = methods.make_egad(branch=None, half_life=10_000.0)
  carry = (student, method.init_state())
  for step, key in enumerate(keys):
    carry = running_step(carry, teacher, key, jnp.float32(step / STEPS), method=method)
  print(
    f"running   forward KL {divergence(carry[0], teacher):.3f} nats, median teacher entropy"
    f" {float(carry[1].entropy.quantile(0.5)):.2f} nats"
  )


if __name__ == "__main__":
  main()
