"""The pure functions of an experiment, put together from its parts; nothing is compiled here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from egad_jax import sharding
from egad_jax.head.chunked import Head
from egad_jax.head.paired import (
  PairedHead,
  RowLoss,
  paired_head,
  sharded_paired_head,
)
from egad_jax.training import evaluation
from egad_jax.training.experiment import Experiment
from egad_jax.training.objective import Objective, make_objective, make_paired_objective
from egad_jax.training.step import TrainStep, make_train_step

Statistics = Callable[..., dict[str, jax.Array]]


def build_head(experiment: Experiment, token_loss: Any) -> Head:
  """The chunked head over the experiment's mesh and vocabulary."""
  return experiment.programs.make_head(
    token_loss,
    experiment.mesh,
    batch_axes=sharding.BATCH_AXES,
    tensor_axis=sharding.TENSOR_AXIS,
    vocab_size=experiment.tokenizers.student.vocab_size,
    chunk_size=experiment.programs.chunk_size,
    kernels=experiment.programs.kernels,
    student_soft_cap=experiment.models.student.config.logit_soft_cap,
    teacher_soft_cap=experiment.models.teacher.config.logit_soft_cap,
  )


def build_paired_head(experiment: Experiment, loss: RowLoss) -> PairedHead:
  """The head of paired rows over the experiment's mesh and vocabularies."""
  head = paired_head(
    loss,
    student_vocab_size=experiment.tokenizers.student.vocab_size,
    teacher_vocab_size=experiment.tokenizers.teacher.vocab_size,
    student_soft_cap=experiment.models.student.config.logit_soft_cap,
    teacher_soft_cap=experiment.models.teacher.config.logit_soft_cap,
  )
  return sharded_paired_head(head, experiment.mesh, batch_axes=sharding.BATCH_AXES)


def build_objective(experiment: Experiment) -> Objective:
  """`(trainable, frozen, batch, context) -> (summed loss, Outcome)`."""
  if experiment.method.chunk_loss is not None:
    return make_paired_objective(
      student=experiment.models.student,
      teacher=experiment.teacher,
      chunk_loss=experiment.method.chunk_loss,
      make_head=lambda loss: build_paired_head(experiment, loss),
    )
  return make_objective(
    student=experiment.models.student,
    teacher=experiment.teacher,
    method=experiment.method,
    make_head=lambda loss: build_head(experiment, loss),
    student_taps=experiment.models.student_taps,
  )


def build_train_step(experiment: Experiment) -> TrainStep:
  """`(state, frozen, batch) -> (state, metrics)`."""
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
  """The train step for the experiment's shapes and devices, ready to compile."""
  state = experiment.abstract_state()
  step = jax.jit(
    build_train_step(experiment),
    # The state comes back where it was, in the memory of the one passed in.
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, state),
      sharding.replicated(experiment.mesh),
    ),
    donate_argnums=0,
    compiler_options=experiment.programs.compiler_options or None,
  )
  return step.lower(state, experiment.abstract_frozen(), experiment.abstract_batch())


def build_statistics(experiment: Experiment) -> Statistics:
  """`(trainable, frozen, batch, context) -> {name: [batch, places]}` of an evaluation."""
  method, student, teacher = experiment.method, experiment.models.student, experiment.teacher
  if method.chunk_loss is not None:
    loss = evaluation.evaluation_row_loss(method.chunk_loss)
    return evaluation.make_chunk_statistics(
      student=student, teacher=teacher, head=build_paired_head(experiment, loss)
    )
  head = build_head(experiment, evaluation.evaluation_token_loss(method))
  return evaluation.make_token_statistics(student=student, teacher=teacher, head=head)


def build_sums(experiment: Experiment) -> Callable[..., dict[str, jax.Array]]:
  """`(trainable, frozen, batch, context) -> sums over the batch's tokens` of an evaluation."""
  vocab_size = experiment.tokenizers.teacher.vocab_size
  return evaluation.make_sums(build_statistics(experiment), vocab_size)
