"""The compiled programs of a run and the device arrays that they share."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from egad_jax import progress, sharding
from egad_jax.data import pipeline
from egad_jax.data.batches import AnyBatch
from egad_jax.models.generation import generate
from egad_jax.teachers import PlacedTeacher
from egad_jax.training import evaluation, programs
from egad_jax.training.batch_source import StateOf
from egad_jax.training.experiment import Experiment
from egad_jax.training.state import Frozen, TrainState, student_params
from egad_jax.types import Params

_LOG = logging.getLogger(__name__)


class CompiledRun:
  """Compiles each program of an experiment once and runs it.

  Attributes:
    experiment: the experiment being run.
    frozen: the parameters that the programs read but never change, on the devices.
  """

  def __init__(self, experiment: Experiment, beside: CompiledRun | None = None):
    """Puts the teacher's parameters on the devices; compiles nothing yet.

    Args:
      experiment: the experiment to run.
      beside: a run of the same rows and a teacher shared with it, whose arrays on the devices
        serve this run too; None for a run by itself.
    """
    self.experiment, self._beside = experiment, beside
    self._teacher: PlacedTeacher
    if beside is not None:
      self._teacher = beside._teacher
    else:
      with progress.phase("copying the teacher to the devices"):
        self._teacher = experiment.teacher.place()
    self.frozen = Frozen(teacher=self._teacher.params, student={})
    self._options = experiment.programs.compiler_options or None
    jitted = functools.partial(jax.jit, compiler_options=self._options)
    self._sums = jitted(programs.build_sums(experiment))
    self._statistics = jitted(programs.build_statistics(experiment))
    self._objective = jitted(programs.build_objective(experiment))
    self._held_out: list[AnyBatch] | None = None
    self._teacher_texts: dict[tuple[Any, ...], list[str]] = {}

  def compile(self, state: TrainState, *, evaluates: bool = True) -> Any:
    """The train step as one executable: `(state, frozen, batch) -> (state, metrics)`.

    Args:
      state: the train state, on the devices.
      evaluates: whether the run evaluates during training. If so, the evaluation's program is
        compiled here, too.
    """
    started = time.monotonic()
    with progress.phase("compiling the train step", is_told=False):
      compiled = programs.lower_train_step(self.experiment).compile()
    _LOG.info("compiled the train step in %.1f s", time.monotonic() - started)
    if evaluates:
      with progress.phase("compiling the evaluation"):
        first = next(self._teacher.attach(self.held_out()[:1]))
        jax.block_until_ready(self.sums_of(state)(first))
    return compiled

  def student_params(self, state: TrainState) -> Params:
    """The student's parameters, on the devices."""
    return student_params(state.trainable, self.frozen.student)

  def train_batches(self, start_step: int, state_of: StateOf) -> Iterator[AnyBatch]:
    """Batches from `start_step` on, on the devices, with what the teacher attaches to them.

    Args:
      start_step: number of steps made before the first batch is used.
      state_of: returns the state after all steps made so far.
    """
    experiment, size = self.experiment, self.experiment.optimization.batch_size
    part = sharding.process_rows(experiment.mesh, size)
    rows = experiment.batch_source.stream(start_step, state_of, part)
    on_devices = (sharding.device_put_batch(batch, experiment.mesh) for batch in rows)
    return self._teacher.attach(on_devices, experiment.optimization.accumulation)

  def held_out(self) -> list[AnyBatch]:
    """The held-out batches, on the devices; read once and kept there."""
    if self._beside is not None:
      return self._beside.held_out()
    if self._held_out is None:
      rows = pipeline.held_out_batches(
        self.experiment.rows,
        batch_size=self.experiment.evaluation.batch_size,
        max_tokens=self._held_out_tokens(),
        part=sharding.process_rows(self.experiment.mesh, self.experiment.evaluation.batch_size),
      )
      self._held_out = [sharding.device_put_batch(batch, self.experiment.mesh) for batch in rows]
    return self._held_out

  def attached_held_out(self) -> Iterator[AnyBatch]:
    """The held-out batches with what the teacher attaches to them, computed one after the other."""
    return self._teacher.attach(self.held_out())

  def fill(self, state: TrainState) -> TrainState:
    """The state with its running distributions filled from the first train batches."""
    held = [state]
    fill_together([self], [lambda: held[-1]], [held.append])
    return held[-1]

  def filler(self) -> Callable[[TrainState, AnyBatch], TrainState]:
    """A function that adds a train batch to the running distributions of a state."""
    experiment = self.experiment
    objective = programs.build_objective(experiment)

    def fill(state: TrainState, frozen: Frozen, batch: Any) -> TrainState:
      context = experiment.context(state.step, state.method_state)
      outcomes = jax.lax.map(
        lambda micro: objective(state.trainable, frozen, micro, context)[1],
        sharding.micro_batches(batch, experiment.optimization.accumulation),
      )
      observed = experiment.method.observe(state.method_state, outcomes.stats, outcomes.mask)
      return state._replace(method_state=observed)

    shardings = jax.tree.map(lambda x: x.sharding, experiment.abstract_state())
    program = jax.jit(fill, out_shardings=shardings, compiler_options=self._options)
    return lambda state, batch: jax.block_until_ready(program(state, self.frozen, batch))

  def evaluate(self, state: TrainState, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Averages over the held-out tokens; see `evaluation.evaluate`.

    Args:
      state: the state whose student is evaluated.
      check: called before each batch; an exception that it raises ends the evaluation.
    """
    (result,) = evaluate_together([self], [lambda: state], check)
    return result

  def averages(self, parts: Sequence[Any]) -> dict[str, Any]:
    """The evaluation whose sums over each held-out batch are `parts`."""
    return evaluation.evaluate(
      lambda part: part,
      parts,
      vocab_size=self.experiment.tokenizers.teacher.vocab_size,
      num_bytes=pipeline.held_out_bytes(self.experiment.rows, max_tokens=self._held_out_tokens()),
    )

  def _held_out_tokens(self) -> int:
    return self.experiment.evaluation.rows * self.experiment.rows.seq_len

  def sums_of(self, state: TrainState) -> Callable[[AnyBatch], dict[str, jax.Array]]:
    """A function that gives a student's sums over a held-out batch; see `evaluation.make_sums`."""
    arguments = (state.trainable, self.frozen)
    context = self.experiment.context_after(state)
    return lambda batch: self._sums(*arguments, batch, context)

  def held_out_loss(self, trainable: Params, state: TrainState) -> float:
    """The method's own loss of `trainable`, averaged over the held-out tokens (or aligned spans).

    The context is that of `state`. Students of different steps must be compared at one context,
    because the objective changes with it.
    """
    context = self.experiment.context_after(state)
    total = count = 0.0
    for batch in self._teacher.attach(self.held_out()):
      loss, outcome = self._objective(trainable, self.frozen, batch, context)
      total, count = total + float(loss), count + float(outcome.mask.sum())
    return total / max(count, 1.0)

  def statistics(self, state: TrainState, batch: AnyBatch) -> dict[str, jax.Array]:
    """The statistics {name: float32 [batch, seq]} of a batch's tokens, or of its aligned spans."""
    (attached,) = self._teacher.attach([batch])
    return self.statistics_of(state, attached)

  def statistics_of(self, state: TrainState, attached: AnyBatch) -> dict[str, jax.Array]:
    """As `statistics`, for a batch that has what the teacher attaches to it."""
    context = self.experiment.context_after(state)
    return self._statistics(state.trainable, self.frozen, attached, context)

  def continuations(self, state: TrainState | None) -> list[str]:
    """Each prompt's greedy continuation, by the student of `state`, or by the teacher if None."""
    if state is not None:
      return self._continuations(state)
    # Runs beside each other have one teacher, which is asked once.
    evaluation = self.experiment.evaluation
    asked = (evaluation.prompts, evaluation.sample_tokens)
    known = (self._beside or self)._teacher_texts
    if asked not in known:
      known[asked] = self._continuations(None)
    return known[asked]

  def _continuations(self, state: TrainState | None) -> list[str]:
    experiment = self.experiment
    model = experiment.models.teacher if state is None else experiment.models.student
    params = self._teacher.model_params if state is None else self.student_params(state)
    tokenizer = experiment.tokenizers.teacher if state is None else experiment.tokenizers.student
    ends = (
      experiment.models.teacher_generation.ends(tokenizer)
      if state is None
      else experiment.models.student_generation.learnt_ends(tokenizer)
    )
    prompts = [tokenizer.encode_prompt(prompt) for prompt in experiment.evaluation.prompts]
    who = "teacher" if state is None else "student"
    with progress.phase(f"continuing the prompts, {who}"):
      ids = generate(
        model,
        params,
        prompts,
        max_new_tokens=experiment.evaluation.sample_tokens,
        temperature=0.0,
        eos_id=ends,
        vocab_size=tokenizer.vocab_size,
      )
    return list(map(tokenizer.decode_continuation, prompts, ids))


def fill_together(
  runs: Sequence[CompiledRun],
  states: Sequence[Callable[[], TrainState]],
  keep: Sequence[Callable[[TrainState], None]],
) -> None:
  """Fills the running distributions of new states; the runs read the same train batches.

  Args:
    runs: runs beside each other.
    states: for each run, a function that returns its state on the devices.
    keep: for each run, a function that takes its state with one more batch observed.
  """
  counts = [run.experiment.optimization.fill_batches for run in runs]
  # The phase includes the compilations, for which the first batch waits.
  with progress.phase("measuring the teacher's entropy", max(counts)) as phase:
    fillers = [run.filler() for run in runs]
    batches = itertools.islice(runs[0].train_batches(0, states[0]), max(counts))
    for number, batch in enumerate(batches):
      for fill, state, note, count in zip(fillers, states, keep, counts, strict=True):
        if number < count:
          note(fill(state(), batch))
      phase.update(1, "batches")


def evaluate_together(
  runs: Sequence[CompiledRun],
  states: Sequence[Callable[[], TrainState]],
  check: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
  """The evaluation of each run's student; the teacher computes each held-out batch once.

  Args:
    runs: runs beside each other.
    states: for each run, a function that returns its state on the devices; it is called for each
      batch.
    check: called before each batch; an exception that it raises ends the evaluation.
  """
  lead = runs[0]
  parts: list[list[dict[str, jax.Array]]] = [[] for _ in runs]
  with progress.phase("evaluating", len(lead.held_out()), is_told=False) as phase:
    for batch in lead.attached_held_out():
      check()
      for run, state, sums in zip(runs, states, parts, strict=True):
        sums.append(jax.block_until_ready(run.sums_of(state())(batch)))
      phase.update(1, "held-out batches")
    return [run.averages(sums) for run, sums in zip(runs, parts, strict=True)]
