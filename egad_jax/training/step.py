"""The train step: a pure function of the state, the frozen parameters and a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egad_jax.data.batches import AnyBatch
from egad_jax.head.teacher import ENTROPY_BOUNDS
from egad_jax.methods.method import Context, Method, State
from egad_jax.sharding import micro_batches
from egad_jax.training.guard import Guard, Spikes, Verdict
from egad_jax.training.objective import Objective
from egad_jax.training.state import Frozen, TrainState
from egad_jax.types import Metrics, Params, Stats

TrainStep = Callable[[TrainState, Frozen, AnyBatch], tuple[TrainState, Metrics]]


def summarize(stats: Stats, mask: jax.Array) -> Metrics:
  """Reduces per-token statistics to {name: (sum, count)} over the tokens of the mask.

  Args:
    stats: {name: [...]}, with at least the statistics that every method has.
    mask: bool [...], the tokens that count.
  """
  count = jnp.sum(mask, dtype=jnp.float32)

  def total(name):
    return jnp.sum(stats[name], where=mask), count

  temperature, one = stats["temperature"], jnp.float32(1)
  bracket = [name for name in ENTROPY_BOUNDS if name in stats]
  return {
    "distillation_loss": total("distillation_loss"),
    "cross_entropy": total("cross_entropy"),
    "teacher_entropy": total("teacher_entropy"),
    "student_entropy": total("student_entropy"),
    "temperature_mean": total("temperature"),
    "temperature_min": (jnp.min(temperature, where=mask, initial=jnp.inf), one),
    "temperature_max": (jnp.max(temperature, where=mask, initial=-jnp.inf), one),
    "weight_mean": total("weight"),
    "hard_fraction": total("hard"),
    "tokens": (count, one),
    **{name: total(name) for name in bracket},
  }


def _guard_metrics(verdict: Verdict, guard: Guard) -> dict[str, Any]:
  limits = {}
  if verdict.limits is not None:
    limits = {"loss_limit": verdict.limits[0], "grad_norm_limit": verdict.limits[1]}
  return {
    "finite": verdict.finite,
    "skipped": ~verdict.accepted,
    "skipped_total": guard.skipped,
    "skipped_in_a_row": guard.skipped_in_a_row,
    **limits,
  }


def make_train_step(
  *,
  objective: Objective,
  method: Method,
  tx: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  context: Callable[[jax.Array, State], Context],
  accumulation: int = 1,
  spikes: Spikes | None = None,
) -> TrainStep:
  """Returns `(state, frozen, batch) -> (state, metrics)`; jit and shard it at the call site.

  The loss is the method's sum over the tokens of the whole batch, divided once by their number, so
  micro-batches, chunks and shards change nothing but rounding. A step whose loss or gradient is not
  finite, or is a spike, is skipped: parameters, optimizer and method keep their state bit for bit,
  and the metric "skipped" is 1. A skipped step still counts as a step. Learning rate and curriculum
  go by the step, so they end where the config says however many steps were skipped.

  Args:
    objective: the summed loss, from `make_objective`.
    method: the method whose state the step updates.
    tx: the optimizer. Its `update` gets `step=`, the number of steps made before, if it takes
      extra arguments.
    learning_rate: the schedule inside `tx`, for the metrics.
    context: (step, method state) -> the method's context during that step.
    accumulation: micro-batches per step; must divide the rows of the batch.
    spikes: the spikes to skip; None to skip only steps that are not finite.
  """

  tx = optax.with_extra_args_support(tx)

  def accumulated(trainable: Params, frozen: Frozen, batch: AnyBatch, context: Context):
    gradient = jax.grad(objective, has_aux=True)
    if accumulation == 1:
      return gradient(trainable, frozen, batch, context)

    def body(grads, micro_batch):
      more, outcome = gradient(trainable, frozen, micro_batch, context)
      return jax.tree.map(jnp.add, grads, more), outcome

    start = jax.tree.map(jnp.zeros_like, trainable)
    grads, outcome = jax.lax.scan(body, start, micro_batches(batch, accumulation))
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), outcome.metrics)
    return grads, outcome._replace(loss=jnp.sum(outcome.loss), metrics=metrics)

  def train_step(state: TrainState, frozen: Frozen, batch: AnyBatch):
    now = context(state.step, state.method_state)
    # What a method decides at the end of a step applies to the step that follows.
    following = context(state.step + 1, state.method_state).elapsed
    grads, (loss, stats, metrics, mask) = accumulated(state.trainable, frozen, batch, now)
    tokens = jnp.sum(mask, dtype=jnp.float32)
    count = jnp.maximum(tokens, 1)
    grads = jax.tree.map(lambda g: g / count, grads)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable, step=state.step)
    updated = state._replace(
      trainable=optax.apply_updates(state.trainable, updates),
      opt_state=opt_state,
      method_state=method.update(state.method_state, stats, mask, following),
    )
    judged = jnp.stack([loss / count, grad_norm])
    verdict = state.guard.judge(judged, spikes)
    accepted = verdict.accepted
    kept = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), updated, state)
    guard = state.guard.update(accepted, judged, tokens, spikes)
    one = jnp.float32(1)
    scalars = {
      "grad_norm": grad_norm,
      "learning_rate": learning_rate(state.step),
      **_guard_metrics(verdict, guard),
      **({"curriculum_progress": now.progress} if method.reads_progress else {}),
      **method.metrics(state.method_state),
    }
    metrics = (
      summarize(stats, mask)
      | metrics
      | {"loss": (loss, count)}
      | {name: (jnp.float32(value), one) for name, value in scalars.items()}
    )
    return kept._replace(step=state.step + 1, guard=guard), metrics

  return train_step
