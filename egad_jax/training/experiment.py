"""What is trained on what, and how: all that decides the numbers of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egad_jax import sharding
from egad_jax.data.batches import AnyBatch, Batch, PairedBatch
from egad_jax.data.packing import Rows
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.durability import restoring
from egad_jax.head import head_on_mesh
from egad_jax.head.chunked import Head
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
  """The two models, and what their files say of them.

  Attributes:
    student: the functions of the model that is trained.
    teacher: the functions of the model learnt from.
    student_params: host arrays to start from, None to draw them from the seed.
    teacher_params: host arrays, None to draw them from the seed.
    student_taps: layers of the student whose features are compared.
    teacher_taps: the teacher's layers, one for each of the student's.
    teacher_name: where the teacher comes from, for people.
    teacher_license: as the teacher's files say, or None.
    teacher_dtype: dtype of the teacher's parameters on the devices.
    teacher_generation: how the teacher's texts end and are sampled.
    student_generation: the same for the student, whose export says so: the teacher's if they share
      a tokenizer.
    unread: what the models' files hold that is neither read nor known to be harmless.
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
  """The student's tokenizer and the teacher's; one object unless the rows are paired."""

  student: Tokenizer
  teacher: Tokenizer


@dataclasses.dataclass(frozen=True)
class Optimization:
  """How the steps are made.

  Attributes:
    tx: the optimizer.
    learning_rate: schedule inside `tx`, steps made before -> rate.
    progress: schedule of the curriculum, steps made before -> phi in [0, 1].
    steps: updates in all.
    batch_size: rows of an update, over all processes.
    accumulation: micro-batches of an update.
    spikes: which finite steps are skipped; None for none.
    fill_batches: train batches that fill the running distributions before step 0.
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
  """How the programs are built and compiled.

  Attributes:
    chunk_size: tokens whose logits exist at once; None for the head's default.
    kernels: whether the head may use those of the mesh's devices.
    compiler_options: for every program of the run.
    make_head: the head's maker, called as `head_on_mesh` is.
  """

  chunk_size: int | None
  kernels: bool
  compiler_options: dict[str, str]
  make_head: Callable[..., Head] = head_on_mesh


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
  """What an evaluation looks at.

  Attributes:
    rows: held-out rows, at most.
    batch_size: held-out rows at once.
    prompts: texts continued before and after the training.
    sample_tokens: tokens of a continuation; 0 for no continuations.
  """

  rows: int
  batch_size: int
  prompts: tuple[str, ...]
  sample_tokens: int


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One distillation; two that are equal give the same numbers on the same devices.

  Attributes:
    method_name: the method's name in the table.
    method: the method's functions.
    models: student and teacher.
    teacher: where the teacher's outputs come from.
    tokenizers: the student's and the teacher's.
    rows: the packed data.
    batch_source: where the train batches come from; usually `rows`.
    mesh: the student's devices.
    optimization: how the steps are made.
    programs: how the programs are built and compiled.
    evaluation: what an evaluation looks at.
    seed: of initial values and data order.
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

  def init_state(self, host_params: Params | None = None) -> TrainState:
    """The state before step 0, traceable; `host_params` replace the student's random values."""
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
    """Shapes, dtypes and shardings of the state."""
    shapes = jax.eval_shape(self.init_state)
    whole = sharding.replicated(self.mesh)
    trainable = {
      "student": sharding.parameter_shardings(
        self.mesh, self.models.student.logical_axes(), shapes.trainable["student"]
      ),
      "method": jax.tree.map(lambda _: whole, shapes.trainable["method"]),
    }
    # The optimizer's moments lie where their parameters lie.
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
    placed = sharding.place(self.models.student_params, shardings.trainable["student"])
    return jax.jit(self.init_state, out_shardings=shardings)(placed)

  def abstract_frozen(self) -> Frozen:
    """Shapes, dtypes and shardings of what the programs read beside the state."""
    return Frozen(teacher=self.teacher.abstract_params(), student={})

  def abstract_batch(self) -> AnyBatch:
    """Shapes, dtypes and shardings of a train batch, what a teacher attaches included."""
    shape = (self.optimization.batch_size, self.rows.seq_len)
    rows = sharding.batch_sharding(self.mesh)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    numbers = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=rows)
    side = Batch(ids, ids, ids, ids, jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=rows))
    batch = side if self.rows.sides == 1 else PairedBatch(side, side, ids, ids)
    batch = batch._replace(row_numbers=numbers)
    return batch._replace(attached=self.teacher.abstract_attached(batch))

  def context(self, step: jax.typing.ArrayLike, method_state: State) -> Context:
    """What the method reads during the step that follows `step` others."""
    progress = jnp.asarray(self.optimization.progress(step), jnp.float32)
    return Context(method_state, progress, position_in_run(step, self.optimization.steps))

  def context_after(self, state: TrainState) -> Context:
    """What the method reads when a state is evaluated: the context of the step made last.

    So an evaluation and the train metrics of one step have the same phi. Before training it is
    that of the first step.
    """
    return self.context(jnp.maximum(state.step - 1, 0), state.method_state)
