"""The kernels in the interpreter of TPUs, in which a block outside its array is an error."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from egad_jax.head import tpu_kernels

VOCAB, DIM, CHUNK, TILE = 384, 128, 256, 128


def options(*semantics: Any) -> dict[str, Any]:
  """Makes one block an error where Pallas' plain interpreter would take the nearest one."""
  return {
    "interpret": pltpu.InterpretParams(out_of_bounds_reads="raise"),
    "compiler_params": pltpu.CompilerParams(dimension_semantics=semantics),
  }


def half(*shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.bfloat16)


def test_the_teachers_logits_and_sums_stay_inside_their_arrays():
  hidden, weight = half(CHUNK, DIM), half(VOCAB, DIM)
  logits, maximum, total, weighted = tpu_kernels.teacher_logits(
    hidden, weight, tile=(128, TILE, 128), vocab=VOCAB, soft_cap=None, options=options
  )
  expected = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
  by_lane = expected.reshape(CHUNK, -1, tpu_kernels.LANES)
  below = by_lane - by_lane.max(1, keepdims=True)
  np.testing.assert_allclose(maximum, by_lane.max(1), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(total, np.exp(below).sum(1), rtol=1e-4)
  np.testing.assert_allclose(weighted, (np.exp(below) * below).sum(1), rtol=1e-4, atol=1e-5)


def test_the_last_core_has_no_tile_beyond_the_vocabulary():
  # Three tiles for two cores: the second core's last step has none.
  hidden, weight = half(CHUNK, DIM), half(VOCAB, DIM)
  logits = jnp.zeros((CHUNK, VOCAB))
  lanes = jnp.zeros((CHUNK, tpu_kernels.LANES)).at[:, tpu_kernels.KL].set(1.0)
  lanes = lanes.at[:, tpu_kernels.LOG_P].set(np.log(2.0))
  before = jnp.ones((VOCAB, DIM))
  of_hidden, of_weight = tpu_kernels.logits_gradient(
    logits,
    logits,
    hidden,
    weight,
    lanes,
    before,
    tile=(128, TILE),
    cores=2,
    vocab=VOCAB,
    has_cross_entropy=False,
    soft_cap=None,
    options=options,
  )
  # Each logit's gradient is exp(0) - exp(-log 2) = 1/2.
  rows, columns = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
  parts = [columns[: 2 * TILE].sum(0) / 2, columns[2 * TILE :].sum(0) / 2]
  for part, expected in zip(of_hidden, parts, strict=True):
    np.testing.assert_allclose(part, np.tile(expected, (CHUNK, 1)), rtol=1e-5, atol=1e-5)
  expected = np.tile(1 + rows.sum(0) / 2, (VOCAB, 1))
  np.testing.assert_allclose(of_weight, expected, rtol=1e-5, atol=1e-5)
