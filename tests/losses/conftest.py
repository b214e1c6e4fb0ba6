"""A batch with everything that goes wrong in one, and a distribution with a history."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from egad_jax.losses import EntropyDistribution
from egad_jax.methods import Context, State


class LogitsBatch(NamedTuple):
  """student and teacher logits [3, 8, 11], labels and mask [3, 8]; teacher entropies differ."""

  student: jax.Array
  teacher: jax.Array
  labels: jax.Array
  mask: jax.Array


@pytest.fixture
def batch() -> LogitsBatch:
  keys = jax.random.split(jax.random.key(7), 5)
  sharpness = jnp.exp(jax.random.uniform(keys[4], (3, 8, 1), minval=-1.0, maxval=2.5))
  return LogitsBatch(
    student=2 * jax.random.normal(keys[0], (3, 8, 11)),
    teacher=sharpness * jax.random.normal(keys[1], (3, 8, 11)),
    labels=jax.random.randint(keys[2], (3, 8), 0, 11),
    mask=jax.random.bernoulli(keys[3], 0.7, (3, 8)),
  )


@pytest.fixture
def context() -> Context:
  entropy = jnp.exp(jax.random.uniform(jax.random.key(9), (500,), minval=-4.0, maxval=1.0))
  entropies = EntropyDistribution.init().update(entropy, jnp.ones(500, bool), half_life=1e4)
  return Context(State(entropies), progress=jnp.float32(0.3), elapsed=jnp.float32(0.4))
