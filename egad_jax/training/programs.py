"""Builds the pure functions of an experiment from its parts; nothing is compiled here."""

from __future__ import annotations

from collections.abc import Callable

import jax

from egad_jax import sharding
from egad_jax.head.inputs import Head
from egad_jax.head.paired import PairedHead, paired_head, sharded_paired_head
from egad_jax.methods.method import SpanLoss, TokenLoss
from egad_jax.training import evaluation
from egad_jax.training.experiment import Experiment
from egad_jax.training.objective import Objective, make_objective
from egad_jax.training.step import TrainStep, make_train_step

Statistics = Callable[..., dict[str, jax.Array]]


def build_head(experiment: Experiment, loss: TokenLoss | SpanLoss) -> Head | PairedHead:
  """The distillation head of a loss over the experiment's mesh and vocabularies."""
  programs, tokenizers = experiment.programs, experiment.tokenizers
  soft_caps = {
    "student_soft_cap": experiment.models.student.config.logit_soft_cap,
    "teacher_soft_cap": experiment.models.teacher.config.logit_soft_cap,
  }
  if isinstance(loss, SpanLoss):
    head = paired_head(
      loss,
      student_vocab_size=tokenizers.student.vocab_size,
      teacher_vocab_size=tokenizers.teacher.vocab_size,
      chunk_size=programs.chunk_size,
      **soft_caps,
    )
    return sharded_paired_head(head, experiment.mesh, batch_axes=sharding.BATCH_AXES)
  return programs.make_head(
    loss.function,
    experiment.mesh,
    batch_axes=sharding.BATCH_AXES,
    tensor_axis=sharding.TENSOR_AXIS,
    vocab_size=tokenizers.student.vocab_size,
    chunk_size=programs.chunk_size,
    kernels=programs.kernels,
    **soft_caps,
  )


def build_objective(experiment: Experiment) -> Objective:
  """The experiment's objective, `(trainable, frozen, batch, context) -> (summed loss, Outcome)`."""
  return make_objective(
    student=experiment.models.student,
    teacher=experiment.teacher,
    method=experiment.method,
    make_head=lambda loss: build_head(experiment, loss),
    student_taps=experiment.models.student_taps,
  )


def build_train_step(experiment: Experiment) -> TrainStep:
  """The experiment's train step, `(state, frozen, batch) -> (state, metrics)`, not compiled."""
  optimization = experiment.optimization
  return make_train_step(
    objective=build_objective(experiment),
    method=experiment.method,
    tx=optimization.tx,
    learning_rate=optimization.learning_rate,
    context=experiment.context,
    accumulation=optimization.accumulation,
    spikes=optimization.spikes,
  )


def lower_train_step(experiment: Experiment) -> jax.stages.Lowered:
  """The train step lowered for the experiment's shapes and devices, ready to compile."""
  state = experiment.abstract_state()
  step = jax.jit(
    build_train_step(experiment),
    # The new state has the old one's shardings and reuses its memory.
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, state),
      sharding.replicated(experiment.mesh),
    ),
    donate_argnums=0,
    compiler_options=experiment.programs.compiler_options or None,
  )
  return step.lower(state, experiment.abstract_frozen(), experiment.abstract_batch())


def build_statistics(experiment: Experiment) -> Statistics:
  """An evaluation's statistics, `(trainable, frozen, batch, context) -> {name: f32[batch, seq]}`.

  For paired rows they are per span pair.
  """
  return evaluation.make_statistics(
    student=experiment.models.student,
    teacher=experiment.teacher,
    head=build_head(experiment, evaluation.evaluation_loss(experiment.method.loss)),
  )


def build_sums(experiment: Experiment) -> Callable[..., dict[str, jax.Array]]:
  """An evaluation's sums, `(trainable, frozen, batch, context) -> {name: sum over the batch}`."""
  vocab_size = experiment.tokenizers.teacher.vocab_size
  return evaluation.make_sums(build_statistics(experiment), vocab_size)
