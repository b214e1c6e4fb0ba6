"""The optimizer, from optax, and the schedules of the learning rate and the curriculum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """Hyper-parameters of AdamW (Loshchilov & Hutter, 2019), with a warm-up and a decay.

  Attributes:
    learning_rate: peak learning rate.
    warmup_steps: steps of linear rise, the last of which has the peak; at most all steps but one.
      0 for no warm-up.
    schedule: "cosine", "linear" or "constant", the learning rate's form after the warm-up.
    final_fraction: the last step's learning rate as a fraction of the peak; unused if "constant".
    weight_decay: decoupled weight decay of everything but norm scales; 0 for none.
    beta1: decay of the first moment per step, in [0, 1).
    beta2: decay of the second moment per step, in [0, 1).
    epsilon: added to the root of the second moment; positive.
    clip_norm: global norm that larger gradients are scaled down to; 0 for no clipping.
  """

  learning_rate: float
  warmup_steps: int
  schedule: str
  final_fraction: float
  weight_decay: float
  beta1: float
  beta2: float
  epsilon: float
  clip_norm: float


def position_in_run(step: jax.typing.ArrayLike, num_steps: int) -> jax.Array:
  """How far along a run a step is: 0 at the first step, 1 at the last one and beyond.

  In a run of one step, that step counts as the last.

  Args:
    step: number of steps made before it; scalar or array.
    num_steps: number of steps in the whole run.

  Returns:
    float32, the shape of `step`; a scalar in a run of one step.

  >>> [float(position_in_run(step, 5)) for step in (0, 1, 4, 5)], float(position_in_run(0, 1))
  ([0.0, 0.25, 1.0, 1.0], 1.0)
  """
  if num_steps <= 1:
    return jnp.float32(1)
  return _ratio(jnp.asarray(step, jnp.float32), num_steps - 1)


def _ratio(step: jax.Array, whole: int) -> jax.Array:
  """step / whole, clipped to [0, 1]; exactly 1 from `whole` on.

  The comparison is needed because compilers divide by a constant by multiplying with its
  reciprocal, which may give less than 1 at `whole`.
  """
  return jnp.where(step >= whole, 1, jnp.maximum(step / whole, 0))


def _between(first: float, last: float, share: jax.Array) -> jax.Array:
  # Exactly `first` at share 0 and exactly `last` at 1, which first + (last - first) * share is not.
  return first * (1 - share) + last * share


def make_progress(start: float, end: float, power: float, num_steps: int) -> optax.Schedule:
  """The curriculum's progress phi as a function of the number of steps made before.

  phi = start + (end - start) * x^power, where x is `position_in_run`. So phi is `start` at the
  first step and `end` at the last.

  >>> [float(make_progress(0.25, 0.75, 2.0, 5)(step)) for step in (0, 2, 4)]
  [0.25, 0.375, 0.75]
  """
  return lambda step: _between(start, end, position_in_run(step, num_steps) ** power)


def make_schedule(options: OptimizerOptions, num_steps: int) -> optax.Schedule:
  """The learning rate as a function of the number of steps made before, skipped ones included.

  Step n, counted from 1, has peak * n / warmup_steps as long as n <= warmup_steps. Without a
  warm-up the first step has the peak. The last step has peak * final_fraction, unless the schedule
  is constant: a warm-up that is not shorter than the run is cut to end one step before the last.

  >>> options = OptimizerOptions(1.0, 2, "linear", 0.5, 0, 0.9, 0.95, 1e-8, 1.0)
  >>> [float(make_schedule(options, 6)(step)) for step in range(6)]
  [0.5, 1.0, 0.875, 0.75, 0.625, 0.5]
  """
  peak, final = options.learning_rate, options.learning_rate * options.final_fraction
  # The number of the step that has the peak, never the last step of a run of several.
  top = max(1, min(options.warmup_steps, num_steps - 1))
  decay: Callable[[jax.Array], jax.Array] = {
    "cosine": lambda x: (1 - jnp.cos(jnp.pi * x)) / 2,
    "linear": lambda x: x,
    "constant": jnp.zeros_like,
  }[options.schedule]

  def learning_rate(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    rise = _ratio(step + 1, top)
    share = decay(position_in_run(jnp.maximum(step - (top - 1), 0), num_steps - (top - 1)))
    return _between(peak, final, share) * rise

  return learning_rate


def scale_by_step(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
  """Multiplies a direction by minus the learning rate of the `step` passed to `update`.

  optax's own schedules count the updates made. A run that skips steps would then end before its
  schedule does.
  """

  def update(updates: Any, state: Any, params: Any = None, *, step: jax.Array, **_: Any) -> Any:
    del params
    rate = schedule(step)
    return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates), state

  return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def is_decayed(params: Any) -> Any:
  """A tree of bools like `params`: True for the leaves with weight decay, all but norm scales.

  A leaf is told by its name and not its rank, because scanned layers stack their scales.
  """
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)


def make_optimizer(
  options: OptimizerOptions, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Clipping by global norm, then AdamW; `update` takes `step=`, the number of steps made before.

  Args:
    options: the hyper-parameters.
    schedule: the learning rate, from `make_schedule`.
  """
  clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity()
  return optax.chain(
    clip,
    optax.scale_by_adam(b1=options.beta1, b2=options.beta2, eps=options.epsilon),
    optax.add_decayed_weights(options.weight_decay, mask=is_decayed),
    scale_by_step(schedule),
  )
