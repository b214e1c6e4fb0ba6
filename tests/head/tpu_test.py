"""The kernels, step by step on this machine, and compiled for chips that are not here."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from egad_jax import methods
from egad_jax.chips import CHIPS, topology
from egad_jax.head import distillation_head, tpu
from egad_jax.head.tpu import Kernels, chunk_tiles, kernel_chunk_size, kernels_of
from egad_jax.planning.environment import prepare_environment
from egad_jax.planning.plan import compiling_for, devices_of
from tests.head.chunked_test import assert_same
from tests.head.closed_form_test import by_autodiff, value_and_gradients
from tests.head.problems import half_problem

V5E, V5P, TPU7X = Kernels(2**27, 1), Kernels(2**26, 2), Kernels(2**26, 1)


class Described(NamedTuple):
  """A device by its description."""

  platform: str
  device_kind: str


@pytest.mark.short_form(1)
@pytest.mark.parametrize(
  ("vocab", "cores", "caps"),
  [(1003, 1, (3.0, 5.0)), (1536, 2, (None, None)), (300, 1, (None, 4.0))],
)
def test_equal_xla_whatever_the_vocabulary(vocab, cores, caps):
  # 1003 is no multiple of a tile, 1536 are three tiles for two cores, 300 are less than one.
  problem = half_problem(vocab)
  problem.labels[0, :2] = [-1, vocab]
  token_loss = methods.make_egad(ce_weight=0.1).loss.function
  options = {"student_soft_cap": caps[0], "teacher_soft_cap": caps[1]}
  kernels = V5E._replace(cores=cores, interpret=True)
  head = jax.jit(distillation_head(token_loss, chunk_size=128, kernels=kernels, **options))
  actual = value_and_gradients(head, problem)
  xla = distillation_head(by_autodiff(token_loss), **options)
  expected = value_and_gradients(jax.jit(xla), problem)
  assert_same(actual[0], expected[0], 1e-6)
  # A gradient that lies between two numbers of bfloat16 may be rounded to either.
  assert_same(actual[1], expected[1], 3e-4)
  assert actual[1][0].dtype == jnp.bfloat16
  assert actual[1][1].dtype == jnp.float32


def test_vanilla_kd_and_padded_unembeddings():
  problem = half_problem(700, padding=69)
  for name in ("student_unembedding", "teacher_unembedding"):
    getattr(problem, name)[700:] = np.nan
  token_loss = methods.make_vanilla_kd(temperature=2.0).loss.function
  options = {"vocab_size": 700, "chunk_size": 128}
  kernels = V5E._replace(interpret=True)
  actual = value_and_gradients(
    jax.jit(distillation_head(token_loss, kernels=kernels, **options)), problem
  )
  expected = value_and_gradients(jax.jit(distillation_head(token_loss, **options)), problem)
  assert_same(actual[0], expected[0], 1e-6)
  assert_same(actual[1], expected[1], 3e-4)
  assert not np.any(actual[1][1][700:])


@pytest.mark.parametrize("kernels", [V5E, V5P, TPU7X])
@pytest.mark.parametrize("chunk", [128, 256, 768, 1024])
@pytest.mark.parametrize(
  "dims", [(128, 128), (1024, 2048), (1024, 4096), (2560, 5120), (4096, 8192)]
)
def test_tiles_divide_the_chunk(kernels, chunk, dims):
  tiles = chunk_tiles(kernels, chunk, *dims)
  assert tiles is not None
  for rows, columns, *at_once in tiles:
    assert chunk % rows == 0
    assert columns % 128 == 0
    assert all(rows % some == 0 for some in at_once)


def test_sizes_without_tiles():
  assert chunk_tiles(V5E, 100, 1024, 4096) is None
  assert chunk_tiles(V5E, 1024, 576, 4096) is None
  assert chunk_tiles(V5P, 1024, 16384, 16384) is None


def test_chunks_are_whole_vectors():
  assert kernel_chunk_size(V5E, 700, 10_000, 1000) == 512
  assert kernel_chunk_size(V5E, 1, 10_000, 1000) == 128
  assert kernel_chunk_size(V5E, None, 130, 1000) == 256
  assert kernel_chunk_size(V5E, None, 10_000, 10**6) == 256


def test_the_compiler_may_use_most_of_the_vector_memory_but_not_more():
  # Its own limit, 16 MiB, would refuse the tiles.
  params = V5E.options("parallel", "arbitrary")["compiler_params"]
  assert params.dimension_semantics == ("parallel", "arbitrary")
  assert tpu._SHARE * V5E.vector_memory < params.vmem_limit_bytes < V5E.vector_memory


def test_no_kernels_on_other_devices():
  assert kernels_of(jax.devices()[0]) is None


def test_every_chip_has_its_kernels_under_each_of_its_names():
  for name, chip in CHIPS.items():
    found = {kernels_of(Described("tpu", kind)) for kind in chip.device_kinds}
    assert len(found) == 1, name
    assert None not in found, name
  assert kernels_of(Described("gpu", "TPU7x")) is None


@pytest.fixture
def uncached():
  """Switches off the cache of compiled programs, which cannot read those of absent devices."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", before)
  compilation_cache.reset_cache()


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(
  "name",
  [
    "v5e:2x2",
    pytest.param("tpu7x:2x2x1", marks=pytest.mark.slow),
    pytest.param("v5p:2x2x1", marks=pytest.mark.slow),
    pytest.param("v6e:2x2", marks=pytest.mark.slow),
  ],
)
def test_the_train_head_compiles_for_chips_that_are_not_here(name, monkeypatch):
  environment = dict(os.environ)
  prepare_environment(name, environment)
  for key, value in environment.items():
    monkeypatch.setenv(key, value)
  device = devices_of(topology(name))[0]
  assert device.device_kind == CHIPS[topology(name).chip].device_kinds[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  head = distillation_head(
    methods.make_egad(ce_weight=0.1).loss.function, kernels=kernels_of(device)
  )
  problem = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    half_problem(5000, seq=512),
  )
  with compiling_for(device):
    lowered = jax.jit(lambda p: value_and_gradients(head, p)).lower(problem)
  assert lowered.as_text().count("tpu_custom_call") == 3
  # The text of a compiled program of two cores is more than jax can read.
  assert lowered.compile().memory_analysis().temp_size_in_bytes > 0


def test_the_largest_tiles_take_what_their_arrays_take():
  """Blocks in vector memory, where the next block of an operand is beside the one in use."""
  chunk, student, teacher, rows, columns = 1024, 1024, 4096, 1024, 512
  half, single, next_too, lanes = 2, 4, 2, 128
  logits = single * rows * columns
  operands = lambda dim: next_too * half * dim * (rows + columns)
  of_teacher = operands(teacher) + next_too * (logits + 3 * single * rows * lanes) + 4 * logits
  sums = next_too * single * chunk * lanes
  of_gradient = operands(student) + next_too * 2 * logits + single * chunk * student + sums
  of_gradient += 5 * single * student * columns + 4 * logits

  def tiles(size):
    return chunk_tiles(Kernels(size, 1), chunk, student, teacher)

  for size, found in ((of_teacher, "teacher"), (of_gradient, "gradient")):
    enough = int(np.ceil(size / tpu._SHARE))
    assert getattr(tiles(enough), found)[:2] == (rows, columns)
    assert getattr(tiles(enough - 2), found)[:2] < (rows, columns)


def test_lanes_with_far_maxima_join_without_overflow():
  logits = np.random.default_rng(0).normal(size=(3, 128)) + np.linspace(0, 400, 128)
  largest = jnp.asarray(logits, jnp.float32)
  # One logit a lane: its exponential below its own maximum is 1, its difference to that 0.
  maximum, total, weighted = tpu._joined(largest, jnp.ones((3, 128)), jnp.zeros((3, 128)))
  below = logits - logits.max(1, keepdims=True)
  np.testing.assert_allclose(maximum, logits.max(1), rtol=1e-6)
  np.testing.assert_allclose(total, np.exp(below).sum(1), rtol=1e-4)
  np.testing.assert_allclose(weighted, (below * np.exp(below)).sum(1), rtol=1e-4)
