"""The train step: a pure function of state, teacher parameters and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egad_jax.data.batches import Batch
from egad_jax.head.chunked import Head
from egad_jax.losses.method import Context, Method
from egad_jax.models.model import Model
from egad_jax.training.teachers import TeacherOutputs, TeacherSource

Params = Any
# name -> (total, count): divided once, on the host.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class TrainState(NamedTuple):
  """All that a run needs to go on; saved and restored as one.

  Attributes:
    step: updates made, int32 scalar.
    params: {"student": the model's, "method": what the method trains beside it (a projector)}.
    opt_state: of the optimizer over `params`.
    method_state: running distributions and other state of the method.
  """

  step: jax.Array
  params: Params
  opt_state: Any
  method_state: Any


TrainStep = Callable[[TrainState, Params, Batch], tuple[TrainState, Metrics]]


def micro_batches(batch: Batch, accumulation: int) -> Batch:
  """Splits the rows of a batch: [batch, seq] -> [accumulation, batch / accumulation, seq].

  Micro-batch m takes rows m, m + accumulation, …: rows then stay on the device that holds them.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1),
    batch,
  )


def summarize(stats: dict[str, jax.Array], mask: jax.Array) -> Metrics:
  """Per-token statistics as (total, count) over the tokens of the mask."""
  count = jnp.sum(mask, dtype=jnp.float32)

  def total(name):
    return jnp.sum(stats[name], where=mask), count

  temperature, one = stats["temperature"], jnp.float32(1)
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
  }


def make_train_step(
  *,
  student: Model,
  teacher: TeacherSource,
  method: Method,
  head: Head,
  tx: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  progress: optax.Schedule,
  student_taps: tuple[int, ...] = (),
  accumulation: int = 1,
) -> TrainStep:
  """Returns `(state, teacher_params, batch) -> (state, metrics)`; jit and shard at the call site.

  The loss is the method's sum over the tokens of the whole batch, divided once by their number, so
  micro-batches, chunks and shards change nothing but rounding. An update whose loss or gradient is
  not finite is withheld: parameters, optimizer and method keep their state, and the metric
  "finite" is 0.

  Args:
    student: the model trained.
    teacher: where the teacher's outputs come from; runs outside the gradient.
    method: what is made of them.
    head: `distillation_head(method.token_loss)`, sharded or not.
    tx: the optimizer.
    learning_rate: the schedule inside `tx`, for the metrics.
    progress: step -> curriculum progress in [0, 1].
    student_taps: layers of the student that the feature branch compares.
    accumulation: micro-batches per update; must divide the rows of the batch.
  """

  def summed_loss(params: Params, outputs: TeacherOutputs, batch: Batch, context: Context):
    hidden, taps = student.apply(
      params["student"], batch.tokens, batch.positions, batch.segment_ids, taps=student_taps
    )
    unembedding = student.unembedding(params["student"])
    loss, stats = head(
      *(hidden, unembedding, outputs.hidden, outputs.unembedding),
      *(batch.labels, batch.mask, {}, context),
    )
    if method.feature_loss is None:
      return loss, (loss, stats, {})
    feature, metrics = method.feature_loss(
      params["method"], taps, outputs.taps, stats, batch.mask, context
    )
    metrics = {**metrics, "feature_loss": (feature, jnp.sum(batch.mask, dtype=jnp.float32))}
    return loss + feature, (loss + feature, stats, metrics)

  def gradient_sum(params: Params, teacher_params: Params, batch: Batch, context: Context):
    outputs = teacher(teacher_params, batch)  # Outside the gradient: its activations die here.
    return jax.grad(summed_loss, has_aux=True)(params, outputs, batch, context)

  def accumulated(params: Params, teacher_params: Params, batch: Batch, context: Context):
    if accumulation == 1:
      return (*gradient_sum(params, teacher_params, batch, context), batch.mask)
    rows = micro_batches(batch, accumulation)

    def body(grads, micro_batch):
      more, aux = gradient_sum(params, teacher_params, micro_batch, context)
      return jax.tree.map(jnp.add, grads, more), aux

    grads, (loss, stats, metrics) = jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), rows)
    metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
    return grads, (jnp.sum(loss), stats, metrics), rows.mask

  def train_step(state: TrainState, teacher_params: Params, batch: Batch):
    context = Context(state.method_state, progress(state.step))
    grads, (loss, stats, metrics), mask = accumulated(state.params, teacher_params, batch, context)
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1)
    grads = jax.tree.map(lambda g: g / count, grads)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    updated = state._replace(
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      method_state=method.update(state.method_state, stats, mask),
    )
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
    one = jnp.float32(1)
    metrics = (
      summarize(stats, mask)
      | metrics
      | {
        "loss": (loss, count),
        "grad_norm": (grad_norm, one),
        "learning_rate": (jnp.float32(learning_rate(state.step)), one),
        "curriculum_progress": (jnp.float32(context.progress), one),
        "finite": (finite.astype(jnp.float32), one),
      }
    )
    return new_state._replace(step=state.step + 1), metrics

  return train_step
