"""The steps of variants of a small pair, timed on the devices that are there, in turn."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.markdown import table
from configs import tiny
from egad_jax import from_config, sharding
from egad_jax.data.batches import AnyBatch, Batch, PairedBatch
from egad_jax.reporting.metric_log import averages
from egad_jax.training.experiment import Experiment
from egad_jax.training.programs import lower_train_step
from egad_jax.training.state import Frozen

# No round starts later, unless there are too few.
_SECONDS, _LEAST_ROUNDS = 210, 3
_HEADER = (
  "method",
  "median step, s",
  "fastest",
  "slowest",
  "over vanilla_kd",
  "quartiles",
  "tokens/s",
  "temporaries, GiB",
)


def small_config() -> Any:
  """SmolLM2's width, vocabulary and teacher depth, with a student of four layers.

  A vocabulary as wide as a real one beside models narrower than real ones makes the share of the
  loss, and so of what a method adds, larger than in a real run, not smaller.
  """
  config = tiny.get_config()
  config.teacher.source = "random:smollm2-135m"
  config.student.layers = 4
  config.student.dim, config.student.num_heads, config.student.num_kv_heads = 576, 9, 3
  config.student.mlp_dim = 1536
  config.data.tokenizer = "train:49152"
  config.batch_size, config.seq_len = 4, 64
  return config


def random_batch(experiment: Experiment) -> AnyBatch:
  """Rows of random tokens, every place a target; in pairs, every token a chunk."""
  shape = (experiment.optimization.batch_size, experiment.rows.seq_len)
  ids = np.random.default_rng(0).integers(
    0, experiment.tokenizers.student.vocab_size, (2, *shape), np.int32
  )
  positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  batch = Batch(ids[0], ids[1], positions, np.ones(shape, np.int32), np.ones(shape, bool))
  numbers = np.arange(shape[0], dtype=np.int32)
  if experiment.rows.sides == 2:
    return PairedBatch(batch, batch, positions + 1, positions + 1, numbers)
  return batch._replace(row_numbers=numbers)


class Timed:
  """One variant: its state on the device, its program and the times of its steps.

  Attributes:
    state: of the training.
    seconds: of the steps that count.
    temporaries: bytes that the program needs beside its arguments and results.
    tokens: in a batch.
  """

  def __init__(self, experiment: Experiment, frozen: Frozen):
    self._program = lower_train_step(experiment).compile()
    memory: Any = self._program.memory_analysis()
    self.temporaries = memory.temp_size_in_bytes
    self.tokens = experiment.optimization.batch_size * experiment.rows.seq_len
    self.state = experiment.first_state()
    self._frozen = frozen
    self._batch = sharding.device_put_batch(random_batch(experiment), experiment.mesh)
    self.seconds: list[float] = []

  def step(self) -> float:
    """Takes a step; the training goes on from it."""
    started = time.monotonic()
    self.state, metrics = self._program(self.state, self._frozen, self._batch)
    jax.block_until_ready((self.state, metrics))
    self._metrics = metrics
    total, count = metrics["finite"]
    if not jnp.all(total == count):
      raise FloatingPointError("a step was not finite, so that its time means nothing.")
    return time.monotonic() - started

  def values(self) -> dict[str, float]:
    """Averages of the last step's metrics."""
    return averages(jax.device_get(self._metrics))


def measured(
  variants: Iterable[tuple[str, Any]], rounds: int, report: Callable[[str], None]
) -> str:
  """A markdown table of times; every round takes a step of each variant.

  Args:
    variants: (label, config), the baseline first, all of one pair of models.
    rounds: steps of each variant that count, fewer on a slow machine; one more warms up.
    report: takes a line of progress.
  """
  began = time.monotonic()
  jax.config.update("jax_enable_compilation_cache", False)
  timed: dict[str, Timed] = {}
  frozen = student = None
  for label, config in variants:
    started = time.monotonic()
    experiment = from_config.plan_run(config, jax.devices()[:1])
    if frozen is None:  # Drawing random values takes longer than compiling a step.
      frozen = Frozen(experiment.teacher.place().params, {})
      student = jax.device_get(experiment.first_state().trainable["student"])
    models = dataclasses.replace(experiment.models, student_params=student)
    timed[label] = Timed(dataclasses.replace(experiment, models=models), frozen)
    timed[label].step()
    report(f"measured {label}: ready in {time.monotonic() - started:.0f} s")
  order = list(timed)
  for i in range(rounds):
    if i >= _LEAST_ROUNDS and time.monotonic() - began > _SECONDS:
      break
    # Every other round goes backwards, so that no variant always follows the same one.
    for label in order if i % 2 == 0 else reversed(order):
      timed[label].seconds.append(timed[label].step())
    report(f"round {i + 1} of {rounds}")
  baseline = timed[order[0]].seconds
  rows = []
  for label, variant in timed.items():
    # Ratios are taken inside a round: what else the machine does then slows both.
    ratios = [a / b for a, b in zip(variant.seconds, baseline, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    rows.append(
      (
        label,
        *(f"{f(variant.seconds):.3f}" for f in (statistics.median, min, max)),
        f"{statistics.median(ratios):.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{variant.tokens / statistics.median(variant.seconds):,.0f}",
        f"{variant.temporaries / 2**30:.2f}",
      )
    )
  return f"{table(_HEADER, rows)}\n\nRounds: {len(baseline)}."
