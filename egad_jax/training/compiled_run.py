"""The compiled programs of a run and the device arrays that they share."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from egad_jax import progress, sharding
from egad_jax.data import pipeline
from egad_jax.data.batches import AnyBatch
from egad_jax.models.generation import generate
from egad_jax.training import evaluation
from egad_jax.training.micro_batches import micro_batches
from egad_jax.training.run import Run
from egad_jax.training.step import TrainState

_LOG = logging.getLogger(__name__)


class CompiledRun:
  """Compiles each program of a run once and runs it.

  Attributes:
    run: the run.
    teacher_params: what the student's programs take of the teacher.
  """

  def __init__(self, run: Run):
    """Places the teacher; compiles nothing yet."""
    self.run = run
    with progress.phase("copying the teacher to the devices"):
      self._teacher_params = run.place_teacher()
      self.teacher_params = run.beside_student(self._teacher_params)
    self._teacher = run.separate_teacher(self._teacher_params) if run.separate else None
    self._options = run.compiler_options or None
    self._sums = jax.jit(run.sums(), compiler_options=self._options)
    self._statistics = jax.jit(run.statistics(), compiler_options=self._options)
    self._held_out: list[AnyBatch] | None = None
    self._objective = jax.jit(run.objective(), compiler_options=self._options)

  def compile(self, state: TrainState) -> Any:
    """The train step as one executable: `(state, teacher_params, batch) -> (state, metrics)`.

    What evaluates during training is compiled too.
    """
    started = time.monotonic()
    with progress.phase("compiling the train step", is_told=False):
      compiled = self.run.lower_step().compile()
    _LOG.info("compiled the train step in %.1f s", time.monotonic() - started)
    if self.run.intervals.evaluate_steps:
      with progress.phase("compiling the evaluation"):
        first = next(iter(self._taught(self.held_out()[:1])))
        jax.block_until_ready(self._sums_of(state)(first))
    return compiled

  def train_batches(self, start_step: int, stop_step: int | None = None) -> Any:
    """Batches from `start_step` on, on the devices, as the student's programs take them."""
    rows = pipeline.train_batches(
      self.run.rows,
      batch_size=self.run.batch_size,
      seed=self.run.seed,
      start_step=start_step,
      part=sharding.process_rows(self.run.mesh, self.run.batch_size),
    )
    count = None if stop_step is None else stop_step - start_step
    placed = (sharding.place_batch(batch, self.run.mesh) for batch in itertools.islice(rows, count))
    return self._taught(placed, self.run.accumulation)

  def _taught(self, batches: Iterable[AnyBatch], accumulation: int = 1) -> Iterator[Any]:
    """Batches as the student's programs take them: with a separate teacher's outputs."""
    if self._teacher is None:
      return iter(batches)
    return self._teacher.ahead(batches, accumulation)

  def held_out(self) -> list[AnyBatch]:
    """The held-out batches, on the devices."""
    if self._held_out is None:
      rows = pipeline.held_out_batches(
        self.run.rows,
        batch_size=self.run.held_out_batch,
        max_tokens=self._held_out_tokens(),
        part=sharding.process_rows(self.run.mesh, self.run.held_out_batch),
      )
      self._held_out = [sharding.place_batch(batch, self.run.mesh) for batch in rows]
    return self._held_out

  def fill(self, state: TrainState) -> TrainState:
    """The state with its running distributions filled from the first train batches."""
    run = self.run
    objective = run.objective()

    def fill(state: TrainState, teacher_params: Any, batch: Any) -> TrainState:
      context = run.context(state.step, state.method_state)
      outcomes = jax.lax.map(
        lambda micro: objective(state.params, teacher_params, micro, context)[1],
        micro_batches(batch, run.accumulation),
      )
      observed = run.method.observe(state.method_state, outcomes.stats, outcomes.mask)
      return state._replace(method_state=observed)

    shardings = jax.tree.map(lambda x: x.sharding, run.abstract_state())
    program = jax.jit(fill, out_shardings=shardings, compiler_options=self._options)
    # The first batch waits for the compilation.
    with progress.phase("measuring the teacher's entropy", run.fill_batches) as phase:
      for batch in self.train_batches(0, run.fill_batches):
        state = program(state, self.teacher_params, batch)
        jax.block_until_ready(state.step)
        phase.update(1, "batches")
    return state

  def evaluate(self, state: TrainState, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Averages over the held-out tokens; see `evaluation.evaluate`.

    Args:
      state: whose student.
      check: called before each batch; what it raises ends the evaluation.
    """
    sums = self._sums_of(state)
    vocab_size = self.run.teacher_tokenizer.vocab_size
    held_out = self.held_out()
    with progress.phase("evaluating", len(held_out), is_told=False) as phase:

      def checked(batch: AnyBatch) -> dict[str, jax.Array]:
        check()
        result = jax.block_until_ready(sums(batch))
        phase.update(1, "held-out batches")
        return result

      return evaluation.evaluate(
        *(checked, self._taught(held_out)),
        vocab_size=vocab_size,
        num_bytes=pipeline.held_out_bytes(self.run.rows, max_tokens=self._held_out_tokens()),
      )

  def _held_out_tokens(self) -> int:
    return self.run.held_out_rows * self.run.rows.seq_len

  def _sums_of(self, state: TrainState) -> Callable[[AnyBatch], dict[str, jax.Array]]:
    arguments = (state.params["student"], self.teacher_params)
    context = self.run.context_after(state)
    return lambda batch: self._sums(*arguments, batch, context)

  def objective(self, params: Any, state: TrainState) -> float:
    """The method's own loss of `params`, averaged over the held-out tokens (or chunks), at a
    state's context.

    Students of different steps are compared at one context: the objective moves with it.
    """
    context = self.run.context_after(state)
    total = count = 0.0
    for batch in self._taught(self.held_out()):
      loss, outcome = self._objective(params, self.teacher_params, batch, context)
      total, count = total + float(loss), count + float(outcome.mask.sum())
    return total / max(count, 1.0)

  def statistics(self, state: TrainState, batch: AnyBatch) -> dict[str, jax.Array]:
    """Statistics [batch, seq] of the tokens, or chunks, of a batch."""
    context = self.run.context_after(state)
    (taught,) = self._taught([batch])
    return self._statistics(state.params["student"], self.teacher_params, taught, context)

  def continuations(self, state: TrainState | None) -> list[str]:
    """The most probable continuation of each prompt, by the student, or by the teacher if None."""
    run = self.run
    model = run.pair.teacher if state is None else run.pair.student
    params = self._teacher_params if state is None else state.params["student"]
    tokenizer = run.teacher_tokenizer if state is None else run.tokenizer
    pair = run.pair
    ends = (
      pair.teacher_generation.ends(tokenizer)
      if state is None
      else pair.student_generation.learnt_ends(tokenizer)
    )
    prompts = [tokenizer.encode_prompt(prompt) for prompt in run.prompts]
    who = "teacher" if state is None else "student"
    with progress.phase(f"continuing the prompts, {who}"):
      ids = generate(
        *(model, params, prompts),
        max_new_tokens=run.sample_tokens,
        temperature=0.0,
        eos_id=ends,
        vocab_size=tokenizer.vocab_size,
      )
    return list(map(tokenizer.decode_continuation, prompts, ids))


def count_parameters(params: Any) -> int:
  """The number of values in a tree of arrays."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
