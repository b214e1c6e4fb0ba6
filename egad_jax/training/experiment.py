"""An experiment: the models, data and settings that determine the numbers of a run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egad_jax import device_arrays, sharding
from egad_jax.data.batches import AnyBatch, Batch, PairedBatch
from egad_jax.data.packed_rows import Rows
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.durability import restoring
from egad_jax.head import head_on_mesh
from egad_jax.head.inputs import Head
from egad_jax.methods.method import Context, Method, State
from egad_jax.models.generation_settings import NO_SETTINGS, GenerationSettings
from egad_jax.models.license import License
from egad_jax.models.model import Model
from egad_jax.teachers import Teacher
from egad_jax.training.batch_source import BatchSource
from egad_jax.training.guard import Guard, Spikes
from egad_jax.training.optimizers import position_in_run
from egad_jax.training.state import Frozen, TrainState
from egad_jax.types import Params


@dataclasses.dataclass(frozen=True)
class StudentAndTeacher:
  """The two models, and what their files say about them.

  Attributes:
    student: functions of the model that is trained.
    teacher: functions of the model that the student learns from.
    student_params: the student's initial parameters, `LazyArray`s or arrays on the host; None to
      draw them from the seed.
    teacher_params: those of the teacher; None to draw them from the seed.
    student_taps: student layers, counted from 1, whose features are compared; () for none.
    teacher_taps: the teacher layer, counted from 1, that each of `student_taps` is compared with.
    teacher_name: where the teacher comes from, as shown to people.
    teacher_license: the license that the teacher's files state; None if they state none.
    teacher_dtype: dtype of the teacher's parameters on the devices.
    teacher_generation: end tokens and sampling settings of the teacher.
    student_generation: those of the student, which its export states. They are the teacher's if the
      two share a tokenizer and the teacher has end tokens.
    unread: descriptions of what the models' files hold that is neither read nor known to be
      harmless to leave out; () for nothing.
  """

  student: Model
  teacher: Model
  student_params: Params | None
  teacher_params: Params | None
  student_taps: tuple[int, ...]
  teacher_taps: tuple[int, ...]
  teacher_name: str
  teacher_license: License | None
  teacher_dtype: Any
  teacher_generation: GenerationSettings = NO_SETTINGS
  student_generation: GenerationSettings = NO_SETTINGS
  unread: tuple[str, ...] = ()


class Tokenizers(NamedTuple):
  """The student's and the teacher's tokenizer; the same object unless the rows are paired."""

  student: Tokenizer
  teacher: Tokenizer


@dataclasses.dataclass(frozen=True)
class Optimization:
  """The optimizer, its schedules and the sizes of a step.

  Attributes:
    tx: the optimizer.
    learning_rate: the schedule inside `tx`: number of steps made before -> learning rate.
    progress: the curriculum's schedule: number of steps made before -> phi in [0, 1].
    steps: steps in the whole run, skipped ones included.
    batch_size: packed rows per step, over all processes.
    accumulation: micro-batches per step; 1 for no accumulation.
    spikes: the spikes to skip; None to skip only steps that are not finite.
    fill_batches: train batches that fill the running distributions before the first step; 0 for
      none.
  """

  tx: optax.GradientTransformation
  learning_rate: optax.Schedule
  progress: optax.Schedule
  steps: int
  batch_size: int
  accumulation: int
  spikes: Spikes | None
  fill_batches: int


@dataclasses.dataclass(frozen=True)
class ProgramOptions:
  """Options for building and compiling the run's programs.

  Attributes:
    chunk_size: tokens whose logits exist at once; None for the head's default.
    kernels: whether the head may use hand-written kernels for the mesh's devices.
    compiler_options: XLA options, name -> value, for every program of the run; {} for none.
    make_head: makes the distillation head; called with the arguments of `head_on_mesh`.
  """

  chunk_size: int | None
  kernels: bool
  compiler_options: dict[str, str]
  make_head: Callable[..., Head] = head_on_mesh


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """The held-out rows and the prompts of an evaluation, and their sizes.

  Attributes:
    rows: the largest number of held-out rows to evaluate on.
    batch_size: held-out rows per batch, over all processes.
    prompts: texts that the models continue before and after training.
    sample_tokens: tokens per continuation; 0 for no continuations.
  """

  rows: int
  batch_size: int
  prompts: tuple[str, ...]
  sample_tokens: int


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One distillation run; two equal experiments give the same numbers on the same devices.

  Attributes:
    method_name: the method's name, as in `config.method`.
    method: functions of the distillation method.
    models: functions and initial parameters of student and teacher.
    teacher: the source of the teacher's outputs.
    tokenizers: the tokenizers of student and teacher.
    rows: the packed rows of both splits.
    batch_source: the source of the train batches; usually `rows`.
    mesh: the mesh that the student is trained on.
    optimization: the optimizer, its schedules and the sizes of a step.
    programs: options for building and compiling the run's programs.
    evaluation: the held-out rows and the prompts of an evaluation, and their sizes.
    seed: seed of the random initial values and the data order.
    export_dtype: dtype of the exported weights, "float32" or "bfloat16".
  """

  method_name: str
  method: Method
  models: StudentAndTeacher
  teacher: Teacher
  tokenizers: Tokenizers
  rows: Rows
  batch_source: BatchSource
  mesh: jax.sharding.Mesh
  optimization: Optimization
  programs: ProgramOptions
  evaluation: EvaluationOptions
  seed: int
  export_dtype: str = "float32"

  def init_state(self, host_params: Params | None = None) -> TrainState:
    """The state before the first step, traceable; `host_params` replace random student values."""
    student, method_key, _ = jax.random.split(jax.random.key(self.seed), 3)
    model = self.models.student
    trainable = {
      "student": model.init(student) if host_params is None else host_params,
      "method": self.method.init_params(
        method_key,
        student_dim=model.config.dim,
        teacher_dim=self.models.teacher.config.dim,
        num_taps=len(self.models.student_taps),
      ),
    }
    return TrainState(
      step=jnp.int32(0),
      trainable=trainable,
      opt_state=self.optimization.tx.init(trainable),
      method_state=self.method.init_state(),
      guard=Guard.init(),
    )

  def abstract_state(self) -> TrainState:
    """The state as a tree of `jax.ShapeDtypeStruct`s with shardings."""
    return self._abstract_state

  @functools.cached_property
  def _abstract_state(self) -> TrainState:
    shapes = jax.eval_shape(self.init_state)
    whole = sharding.replicated(self.mesh)
    trainable = {
      "student": sharding.parameter_shardings(
        self.mesh, self.models.student.logical_axes(), shapes.trainable["student"]
      ),
      "method": jax.tree.map(lambda _: whole, shapes.trainable["method"]),
    }
    # The optimizer's moments are sharded like their parameters.
    opt_shardings = optax.tree_utils.tree_map_params(
      self.optimization.tx,
      lambda _, s: s,
      shapes.opt_state,
      trainable,
      transform_non_params=lambda _: whole,
    )
    shardings = shapes._replace(
      step=whole,
      trainable=trainable,
      opt_state=opt_shardings,
      method_state=jax.tree.map(lambda _: whole, shapes.method_state),
      guard=jax.tree.map(lambda _: whole, shapes.guard),
    )
    return restoring.abstract(shapes, shardings)

  def first_state(self) -> TrainState:
    """The initial state on the devices; random parameters never exist unsharded."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
    if self.models.student_params is None:
      return jax.jit(self.init_state, out_shardings=shardings)()
    placed = device_arrays.put(self.models.student_params, shardings.trainable["student"])
    return jax.jit(self.init_state, out_shardings=shardings)(placed)

  def abstract_frozen(self) -> Frozen:
    """`Frozen` as a tree of `jax.ShapeDtypeStruct`s with shardings."""
    return Frozen(teacher=self.teacher.abstract_params(), student={})

  def abstract_batch(self) -> AnyBatch:
    """A train batch as a tree of `jax.ShapeDtypeStruct`s with shardings.

    It includes what the teacher attaches to a batch.
    """
    shape = (self.optimization.batch_size, self.rows.seq_len)
    rows = sharding.batch_sharding(self.mesh)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    numbers = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=rows)
    side = Batch(ids, ids, ids, ids, jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=rows))
    batch = side if self.rows.sides == 1 else PairedBatch(side, side, ids, ids)
    batch = batch._replace(row_numbers=numbers)
    return batch._replace(attached=self.teacher.abstract_attached(batch))

  def context(self, step: jax.typing.ArrayLike, method_state: State) -> Context:
    """The method's context during the step that `step` others precede."""
    progress = jnp.asarray(self.optimization.progress(step), jnp.float32)
    return Context(method_state, progress, position_in_run(step, self.optimization.steps))

  def context_after(self, state: TrainState) -> Context:
    """What the method reads when `state` is evaluated: the same as in the last step made.

    An evaluation and the train metrics of the same step therefore have the same phi. Before
    training, the context is that of the first step.
    """
    return self.context(jnp.maximum(state.step - 1, 0), state.method_state)
