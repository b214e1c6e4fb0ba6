"""The seam between a distillation method and the code that trains with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

State = Any
"""A pytree of running statistics, checkpointed with the train state."""
Params = Any
"""A pytree of parameters trained with the student and never exported."""
Stats = dict[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), both scalars; the caller adds them up and divides once."""


class Context(NamedTuple):
  """What a method reads besides the logits; the same for all tokens of a step.

  Attributes:
    state: as it was at the start of the step.
    progress: of the curriculum, phi in [0, 1], scalar float32.
  """

  state: State
  progress: jax.Array


TokenLoss = Callable[
  [jax.Array, jax.Array, jax.Array, Mapping[str, jax.Array], Context], tuple[jax.Array, Stats]
]
FeatureLoss = Callable[
  [Params, jax.Array, jax.Array, Stats, jax.Array, Context], tuple[jax.Array, Metrics]
]


class Method(NamedTuple):
  """A distillation method as pure functions.

  Attributes:
    init_state: () -> state.
    init_params: (key, *, student_dim, teacher_dim, num_taps) -> params of the method's own, {} if
      it has none.
    token_loss: (student_logits [n, vocab], teacher_logits [n, vocab], labels [n],
      extras {name: [n]}, context) -> (loss [n], stats {name: [n]}). Row-independent: a token's
      loss depends on no other token of the call, so chunks and shards change nothing. The stats
      carry no gradient.
    feature_loss: (params, student_taps [taps, batch, seq, Ds], teacher_taps
      [taps, batch, seq, Dt], stats {name: [batch, seq]}, mask [batch, seq], context) ->
      (sum, metrics). The sum is weighted and over the expected share of the tokens it takes, so
      that the caller divides by the number of target tokens alone. None when there is no such term.
    update: (state, stats {name: [...]}, mask [...]) -> state. Once a step, with the stats of all
      tokens of the global batch.
  """

  init_state: Callable[[], State]
  init_params: Callable[..., Params]
  token_loss: TokenLoss
  feature_loss: FeatureLoss | None
  update: Callable[[State, Stats, jax.Array], State]
