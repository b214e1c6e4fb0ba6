"""The two kinds of outputs that a teacher gives to the student's programs.

`Hidden` comes from a model at hand. `TopK` comes from a source that keeps only the likeliest
entries of each next-token distribution, such as a cache or a server. `egad_jax.head` takes either.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax

from egad_jax.losses.top_k import TopK


class Hidden(NamedTuple):
  """A teacher's outputs as its last hidden states: equivalent to its logits and much smaller.

  Attributes:
    hidden: hidden states after the final norm, [batch, seq, dim], in the teacher's compute dtype.
    unembedding: the matrix that makes logits of `hidden`, [vocab, dim].
    taps: the residual stream at the tapped layers, [num_taps, batch, seq, dim]; num_taps is 0 when
      none are asked for. None in what a head is given, which reads no taps.
  """

  hidden: jax.Array
  unembedding: jax.Array
  taps: jax.Array | None = None


Outputs: TypeAlias = Hidden | TopK
"""A teacher's outputs for a batch; the arrays of a `TopK` begin with [batch, seq]."""
