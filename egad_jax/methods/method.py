"""The seam between a distillation method and the code that trains with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.types import Metrics, Params, Stats


class State(NamedTuple):
  """What a method remembers between steps; checkpointed with the train state.

  Attributes:
    entropy: the running distribution of teacher entropy, kept by every method, so that reports
      compare like with like.
    method: a pytree of whatever else the method keeps.
  """

  entropy: EntropyDistribution
  method: Any = ()


class Context(NamedTuple):
  """What a method reads besides the logits; the same for all tokens of a step.

  Attributes:
    state: as it was at the start of the step.
    progress: of the curriculum, phi in [0, 1], scalar float32.
    elapsed: how far along the training the step is: 0 at the first step, 1 at the last. Scalar
      float32.
  """

  state: State
  progress: jax.Array
  elapsed: jax.Array


TokenLoss = Callable[
  [jax.Array, jax.Array, jax.Array, Mapping[str, jax.Array], Context], tuple[jax.Array, Stats]
]
FeatureLoss = Callable[
  [Params, jax.Array, jax.Array, Stats, jax.Array, Context], tuple[jax.Array, Metrics]
]


ChunkLoss = Callable[
  [jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, Context], tuple[jax.Array, Stats]
]


class SerialHead(NamedTuple):
  """Two heads in series: the labels act on the student's hidden states, the teacher behind a map.

  Attributes:
    apply: (params, student_hidden [..., Ds]) -> hidden states [..., Ds] that `token_loss` sees.
    label_loss: a token loss on the logits of the hidden states themselves; its stats replace
      those of the same name.
  """

  apply: Callable[[Params, jax.Array], jax.Array]
  label_loss: TokenLoss


class Method(NamedTuple):
  """A distillation method as pure functions.

  Attributes:
    token_loss: (student_logits [n, vocab], teacher_logits [n, vocab], labels [n],
      extras {name: [n]}, context) -> (loss [n], stats {name: [n]}). Row-independent: a token's
      loss depends on no other token of the call, so chunks and shards change nothing. The stats
      carry no gradient; those of `terms.token_terms` are always there. A method with a
      `chunk_loss` has none and raises a TypeError.
    init_state: () -> state.
    observe: (state, stats {name: [...]}, mask [...]) -> state. Adds the tokens of a global batch
      to the running distributions; also fills them before the first step.
    update: (state, stats, mask, elapsed) -> state. Once a step, with the stats of all tokens of
      the global batch: `observe`, and whatever else the method controls. `elapsed` is that of the
      step that follows, for which it decides.
    init_params: (key, *, student_dim, teacher_dim, num_taps) -> params of the method's own, {} if
      it has none.
    feature_loss: (params, student_taps [taps, batch, seq, Ds], teacher_taps
      [taps, batch, seq, Dt], stats {name: [batch, seq]}, mask [batch, seq], context) ->
      (sum, metrics). The sum is weighted and over the expected share of the tokens it takes, so
      that the caller divides by the number of target tokens alone. None when there is no such term.
    serial: the serial head, or None.
    reads_progress: whether the curriculum's progress does anything; if not, it is not logged.
    metrics: (state) -> {name: scalar}, what of the state is worth a line in the log.
    chunk_loss: for a teacher with another tokenizer, one row at a time: (student_logits [seq_s,
      Vs], teacher_logits [seq_t, Vt], student_labels [seq_s], student_chunks [seq_s],
      teacher_chunks [seq_t], context) -> (loss [C], stats {name: [C]}), see `chunks`; 0 where a
      chunk is not valid, and `observe` and `update` then get chunks for tokens. None otherwise.
  """

  token_loss: TokenLoss
  init_state: Callable[[], State]
  observe: Callable[[State, Stats, jax.Array], State]
  update: Callable[[State, Stats, jax.Array, jax.Array], State]
  init_params: Callable[..., Params] = lambda key, **sizes: {}
  feature_loss: FeatureLoss | None = None
  serial: SerialHead | None = None
  reads_progress: bool = False
  metrics: Callable[[State], dict[str, jax.Array]] = lambda state: {}
  chunk_loss: ChunkLoss | None = None


def entropy_only(half_life: float) -> dict[str, Any]:
  """The fields `init_state`, `observe` and `update` of a method without state of its own.

  Args:
    half_life: of the entropy distribution, in tokens; > 0.

  Raises:
    ValueError: `half_life` is not positive.
  """
  check_half_life(half_life)

  def observe(state: State, stats: Stats, mask: jax.Array) -> State:
    entropy = state.entropy.update(stats["teacher_entropy"], mask, half_life=half_life)
    return state._replace(entropy=entropy)

  def update(state: State, stats: Stats, mask: jax.Array, elapsed: jax.Array) -> State:
    del elapsed
    return observe(state, stats, mask)

  return {
    "init_state": lambda: State(EntropyDistribution.init()),
    "observe": observe,
    "update": update,
  }


def check_half_life(half_life: float) -> None:
  """Raises ValueError unless `half_life` is positive."""
  if not half_life > 0:
    raise ValueError(f"half_life must be a positive number of tokens, got {half_life}.")
