"""The tokens of a span that is longer than a block, summed piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egad_jax.head.span_blocks import SideOrder
from egad_jax.losses.probabilities import label_value, log_probabilities
from egad_jax.losses.spans import averaged, log_mean

LONG_SPANS = "long_spans"
"""Name of the scope of the loops over long spans, in the program's metadata."""


def tokens_of_pair(side: SideOrder, pair: jax.Array, pieces: int, size: int) -> jax.Array:
  """Returns the tokens of one side of a pair, int32 [pieces, size].

  After the last token come different indices >= N, which no token has.
  """
  position = side.ends[pair] + jnp.arange(pieces * size, dtype=jnp.int32)
  num_tokens = side.tokens.size
  known = side.tokens[jnp.minimum(position, num_tokens - 1)]
  return jnp.where(position < side.ends[pair + 1], known, num_tokens + position).reshape(pieces, -1)


class LongTokens(NamedTuple):
  """The tokens of one model in one span, the counterpart of `BlockTokens` with one pair.

  The logits of one piece exist at a time; the backward pass makes them again.

  Attributes:
    logits_of: hidden states [size, D] -> logits [size, vocab].
    hidden: [pieces, size, D], the tokens' hidden states; 0 where there is no token.
    labels: int32 [pieces, size].
    inside: bool [pieces, size], true at tokens; the first piece has one.
  """

  logits_of: Callable[[jax.Array], jax.Array]
  hidden: jax.Array
  labels: jax.Array
  inside: jax.Array

  @property
  def counts(self) -> jax.Array:
    """The number of tokens, [1]."""
    return jnp.sum(self.inside, dtype=jnp.float32)[None]

  def log_average(self, temperature: float | jax.Array, average: str) -> jax.Array:
    """Returns the span's log-probabilities, [1, vocab], at a number or at temperatures [1]."""
    if isinstance(temperature, jax.Array) and temperature.ndim:
      temperature = temperature[0]
    log_of = lambda hidden: log_probabilities(self.logits_of(hidden), temperature=temperature)
    if average == "chain_rule":
      return log_of(self.hidden[0, :1])
    total = self._total(lambda hidden, labels: averaged(log_of(hidden), average))
    return log_mean(total[None], self.counts, average)

  def nll(self) -> jax.Array:
    """Returns minus the sum of the labels' log-probabilities, [1]."""
    of_piece = lambda hidden, labels: label_value(log_probabilities(self.logits_of(hidden)), labels)
    return -self._total(of_piece)[None]

  def _total(self, values_of: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Sums values [size, ...] of hidden states and labels over the tokens of all pieces."""

    @jax.checkpoint
    def add(total, piece):
      hidden, labels, inside = piece
      values = values_of(hidden, labels)
      inside = inside.reshape(-1, *(1,) * (values.ndim - 1))
      return total + jnp.sum(jnp.where(inside, values, 0), axis=0), None

    shape = jax.eval_shape(values_of, self.hidden[0], self.labels[0])
    start = jnp.zeros(shape.shape[1:], shape.dtype)
    return jax.lax.scan(add, start, (self.hidden, self.labels, self.inside))[0]
