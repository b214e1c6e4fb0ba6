"""The interface between a distillation method and the code that trains with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from egad_jax.losses.distribution import EntropyDistribution
from egad_jax.losses.spans import LogAverage, SpanPairs
from egad_jax.types import Metrics, Params, Stats


class State(NamedTuple):
  """What a method remembers between steps; checkpointed with the train state.

  Attributes:
    entropy: the running distribution of teacher entropy, which every method keeps so that reports
      compare like with like.
    method: a pytree of what else the method keeps; () if nothing.
  """

  entropy: EntropyDistribution
  method: Any = ()


class Context(NamedTuple):
  """What a method reads besides the logits; the same for all tokens of a step.

  Attributes:
    state: the method's state at the start of the step.
    progress: phi, how far the curriculum has moved from easy to hard tokens; scalar float32 in
      [0, 1].
    elapsed: how far along the training the step is: 0 at the first step, 1 at the last; scalar
      float32.
  """

  state: State
  progress: jax.Array
  elapsed: jax.Array


TokenFunction = Callable[
  [jax.Array, jax.Array, jax.Array, Mapping[str, jax.Array], Context], tuple[jax.Array, Stats]
]
FeatureLoss = Callable[
  [Params, jax.Array, jax.Array, Stats, jax.Array, Context], tuple[jax.Array, Metrics]
]


class TokenLoss(NamedTuple):
  """A loss per token, for a student and a teacher with one vocabulary.

  Attributes:
    function: (student_logits [n, vocab], teacher_logits [n, vocab], labels [n],
      extras {name: [n]}, context) -> (loss [n], stats {name: [n]}). A token's loss depends on no
      other token of the call, so chunks and shards change nothing. The stats carry no gradient and
      include those of `terms.token_terms`. If `extras` holds "teacher_entropy", [n] in nats, that
      is the teacher's entropy, and the entropy of `teacher_logits`, some of which may be -inf, is
      not: the teacher is a `TopK`, and the logits have an even tail.
  """

  function: TokenFunction


class SpanLoss(NamedTuple):
  """A loss per span pair, for a teacher with another tokenizer; see `losses.spans`.

  Rows of batches then hold the same text in both tokenizations, and `observe` and `update` of the
  method receive span pairs instead of tokens. No function's result for one pair depends on another
  pair of the call but through `kept`, so chunks and shards change nothing.

  Attributes:
    average: how the distributions of a span's tokens are averaged, one of `SPAN_AVERAGES`.
    read_teacher: (log_p, context) -> (log-probabilities [..., Vt], stats {name: [...]}), what the
      loss reads of the teacher alone. `log_p` is that of `SpanPairs`; [...] are the axes of the
      pairs, one or several.
    function: (pairs, what `read_teacher` returned as stats, kept or None, context) -> (loss [...],
      stats {name: [...]}). The stats carry no gradient. Values at pairs that are not valid have no
      meaning. `kept`, bool that broadcasts to [..., Vt], marks the teacher's entries to compare;
      None for all.
    kept_entries: vocabulary of the teacher -> number of its entries that the loss compares, the
      same ones for all spans of a row: those with the largest log-probability that `read_teacher`
      returns for any valid span of the row. None if the loss compares all.
  """

  average: str
  read_teacher: Callable[[LogAverage, Context], tuple[jax.Array, Stats]]
  function: Callable[[SpanPairs, Stats, jax.Array | None, Context], tuple[jax.Array, Stats]]
  kept_entries: Callable[[int], int | None] = lambda teacher_vocab: None


class SerialHead(NamedTuple):
  """Two heads in series: labels act on the student's hidden states, the teacher on a map of them.

  Attributes:
    apply: (params, student_hidden [..., Ds]) -> the mapped hidden states [..., Ds], from which the
      student logits of the method's loss are made.
    label_loss: a token loss on the logits of the unmapped hidden states; its stats replace the
      stats of the method's loss of the same name.
  """

  apply: Callable[[Params, jax.Array], jax.Array]
  label_loss: TokenFunction


class Method(NamedTuple):
  """A distillation method as pure functions.

  Attributes:
    loss: a `TokenLoss` or a `SpanLoss`; its type says what rows and what head the method needs.
    init_state: () -> the state before the first step.
    observe: (state, stats {name: [...]}, mask [...]) -> state. Adds the tokens of a global batch
      to the running distributions; also called before the first step, to fill them.
    update: (state, stats, mask, elapsed) -> state. Called once per step with the stats of all
      tokens of the global batch: does what `observe` does and moves the method's controllers.
      `elapsed` belongs to the next step, the one that the new state is for.
    init_params: (key, *, student_dim, teacher_dim, num_taps) -> the method's own parameters, {} if
      it has none.
    feature_loss: (params, student_taps [taps, batch, seq, Ds], teacher_taps
      [taps, batch, seq, Dt], stats {name: [batch, seq]}, mask [batch, seq], context) ->
      (sum, metrics). The sum is weighted and already divided by the expected share of the tokens
      that get the term, so the caller divides it by the number of target tokens. None when the
      method has no such term.
    serial: the serial head, for a method with a `TokenLoss`; None for a single head.
    reads_progress: whether the loss depends on the curriculum's progress; it is logged only if so.
    metrics: (state) -> {name: scalar}, the parts of the state that are logged.
  """

  loss: TokenLoss | SpanLoss
  init_state: Callable[[], State]
  observe: Callable[[State, Stats, jax.Array], State]
  update: Callable[[State, Stats, jax.Array, jax.Array], State]
  init_params: Callable[..., Params] = lambda key, **sizes: {}
  feature_loss: FeatureLoss | None = None
  serial: SerialHead | None = None
  reads_progress: bool = False
  metrics: Callable[[State], dict[str, jax.Array]] = lambda state: {}


def entropy_only(half_life: float) -> dict[str, Any]:
  """Returns the fields `init_state`, `observe` and `update` of a method without state of its own.

  Args:
    half_life: tokens after which a token counts half in the entropy distribution; > 0.

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
