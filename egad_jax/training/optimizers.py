"""The optimizer and the schedules of a run, from optax."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """Hyper-parameters of AdamW (Loshchilov & Hutter, 2019) with a warmed-up decay.

  Attributes:
    learning_rate: peak value.
    warmup_steps: steps of linear rise from 0.
    schedule: "cosine", "linear" or "constant" after the warm-up.
    final_fraction: the last step's learning rate as a fraction of the peak.
    weight_decay: decoupled, on everything but norm scales.
    beta1: decay of the first moment.
    beta2: decay of the second moment.
    epsilon: added to the root of the second moment.
    clip_norm: global norm that gradients are scaled down to; 0 for no clipping.
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


def make_schedule(options: OptimizerOptions, num_steps: int) -> optax.Schedule:
  """Learning rate as a function of the number of updates made so far.

  >>> options = OptimizerOptions(1.0, 2, "linear", 0.5, 0, 0.9, 0.95, 1e-8, 1.0)
  >>> [round(float(make_schedule(options, 6)(step)), 3) for step in (0, 1, 2, 4, 6)]
  [0.0, 0.5, 1.0, 0.75, 0.5]
  """
  peak, final = options.learning_rate, options.learning_rate * options.final_fraction
  rest = max(1, num_steps - options.warmup_steps)
  decay = {
    "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=options.final_fraction),
    "linear": lambda: optax.linear_schedule(peak, final, rest),
    "constant": lambda: optax.constant_schedule(peak),
  }[options.schedule]()
  if options.warmup_steps == 0:
    return decay
  warmup = optax.linear_schedule(0.0, peak, options.warmup_steps)
  return optax.join_schedules([warmup, decay], [options.warmup_steps])


def is_decayed(params: Any) -> Any:
  """True for the leaves that weight decay shrinks: all but norm scales.

  By name, not by rank: the scales of scanned layers are stacked into matrices.
  """
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)


def make_optimizer(
  options: OptimizerOptions, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Clipping by global norm, then AdamW on `schedule`."""
  clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity()
  return optax.chain(
    clip,
    optax.adamw(
      schedule,
      b1=options.beta1,
      b2=options.beta2,
      eps=options.epsilon,
      weight_decay=options.weight_decay,
      mask=is_decayed,
    ),
  )
