"""Everything a run is made of, as functions and values; `build` makes it from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from egad_jax import sharding
from egad_jax.data.batches import AnyBatch, Batch, PairedBatch
from egad_jax.data.packing import Rows
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.durability import restoring
from egad_jax.durability.watchdog import Limits
from egad_jax.head import head_on_mesh
from egad_jax.head.chunked import Head
from egad_jax.methods.method import Context, Method, State
from egad_jax.models.generation_settings import NO_SETTINGS, GenerationSettings
from egad_jax.models.license import License
from egad_jax.models.model import Model
from egad_jax.training import evaluation
from egad_jax.training.aligned import (
  AlignedHead,
  RowLoss,
  aligned_head,
  make_aligned_objective,
  sharded_aligned_head,
)
from egad_jax.training.guard import Guard, Spikes
from egad_jax.training.objective import Objective, make_objective
from egad_jax.training.optimizers import position_in_run
from egad_jax.training.profiling import Window
from egad_jax.training.step import TrainState, TrainStep, make_train_step
from egad_jax.training.teachers import (
  SeparateTeacher,
  Taught,
  TeacherSource,
  colocated_teacher,
  taught,
)

Params = Any


@dataclasses.dataclass(frozen=True)
class Intervals:
  """When things happen, in steps or seconds; 0 means never on that account."""

  log_steps: int
  save_steps: int
  save_seconds: float
  evaluate_steps: int


@dataclasses.dataclass(frozen=True)
class Pair:
  """Student and teacher and what connects them.

  Attributes:
    student: the model trained.
    teacher: the model learnt from.
    student_params: host arrays to start from, None to draw them from the seed.
    teacher_params: host arrays, None to draw them from the seed.
    student_taps: layers of the student whose features are compared.
    teacher_taps: the teacher's layers, one for each of the student's.
    teacher_name: for people.
    teacher_license: as its files say, or None.
    teacher_dtype: of its parameters on the devices.
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


@dataclasses.dataclass(frozen=True)
class Run:
  """One distillation run.

  Attributes:
    method_name: of the method.
    method: its functions.
    pair: student and teacher.
    tokenizer: of the student.
    teacher_tokenizer: of the teacher; the same unless the rows are paired.
    rows: the packed data.
    mesh: the student's devices.
    teacher_mesh: the teacher's: the same mesh, or one of other devices.
    teacher_on_host: whether the matrices of the teacher's layers lie in host memory.
    tx: the optimizer.
    learning_rate: schedule inside `tx`.
    progress: schedule of the curriculum, steps made before -> phi.
    seed: of initial values and data order.
    steps: updates in all.
    batch_size: rows per update, over all processes.
    accumulation: micro-batches per update.
    chunk_size: of the head; None for its default.
    kernels: whether the head may use those of the mesh's devices.
    spikes: which finite steps are skipped; None for none.
    max_skipped: skipped steps in a row that end the run.
    fill_batches: train batches that fill the running distributions before step 0.
    held_out_rows: rows of an evaluation, at most.
    held_out_batch: rows of them at once.
    intervals: when to log, save and evaluate.
    keep: checkpoints that stay.
    keep_best: whether the best by held-out forward KL stays besides them.
    prompts: continued before and after.
    sample_tokens: tokens of a continuation.
    compiler_options: for every program of the run.
    tensorboard: whether to write its events.
    limits: after which the process is taken to hang.
    profile: the steps to trace.
  """

  method_name: str
  method: Method
  pair: Pair
  tokenizer: Tokenizer
  teacher_tokenizer: Tokenizer
  rows: Rows
  mesh: jax.sharding.Mesh
  teacher_mesh: jax.sharding.Mesh
  teacher_on_host: bool
  tx: optax.GradientTransformation
  learning_rate: optax.Schedule
  progress: optax.Schedule
  seed: int
  steps: int
  batch_size: int
  accumulation: int
  chunk_size: int | None
  kernels: bool
  spikes: Spikes | None
  max_skipped: int
  fill_batches: int
  held_out_rows: int
  held_out_batch: int
  intervals: Intervals
  keep: int
  keep_best: bool
  prompts: tuple[str, ...]
  sample_tokens: int
  compiler_options: dict[str, str]
  tensorboard: bool
  limits: Limits
  profile: Window

  def head(self, token_loss: Any) -> Head:
    """The chunked head over this run's mesh and vocabulary."""
    return head_on_mesh(
      token_loss,
      self.mesh,
      batch_axes=sharding.BATCH_AXES,
      tensor_axis=sharding.TENSOR_AXIS,
      vocab_size=self.tokenizer.vocab_size,
      chunk_size=self.chunk_size,
      kernels=self.kernels,
      student_soft_cap=self.pair.student.config.logit_soft_cap,
      teacher_soft_cap=self.pair.teacher.config.logit_soft_cap,
    )

  def aligned_head(self, loss: RowLoss) -> AlignedHead:
    """The head of paired rows over this run's mesh and vocabularies."""
    head = aligned_head(
      loss,
      student_vocab_size=self.tokenizer.vocab_size,
      teacher_vocab_size=self.teacher_tokenizer.vocab_size,
      student_soft_cap=self.pair.student.config.logit_soft_cap,
      teacher_soft_cap=self.pair.teacher.config.logit_soft_cap,
    )
    return sharded_aligned_head(head, self.mesh, batch_axes=sharding.BATCH_AXES)

  @property
  def separate(self) -> bool:
    """Whether the teacher has devices of its own."""
    return self.teacher_mesh is not self.mesh

  def _taught(
    self, make: Callable[[TeacherSource], Callable[..., Any]], taps: tuple[int, ...] = ()
  ) -> Callable[..., Any]:
    """What `make` makes of this run's teacher: a function of batches as the teacher leaves them."""
    return taught(make) if self.separate else make(colocated_teacher(self.pair.teacher, taps=taps))

  def separate_teacher(self, teacher_params: Params) -> SeparateTeacher:
    """The teacher of a run whose teacher has devices of its own."""
    return SeparateTeacher(
      teacher_params,
      colocated_teacher(self.pair.teacher, taps=self.pair.teacher_taps),
      mesh=self.teacher_mesh,
      student_mesh=self.mesh,
      compiler_options=self.compiler_options or None,
    )

  def objective(self) -> Objective:
    """The summed loss of a batch."""
    return self._taught(self._objective_of, self.pair.teacher_taps)

  def _objective_of(self, teacher: TeacherSource) -> Objective:
    if self.method.chunk_loss is not None:
      return make_aligned_objective(
        student=self.pair.student,
        teacher=teacher,
        chunk_loss=self.method.chunk_loss,
        make_head=self.aligned_head,
      )
    return make_objective(
      student=self.pair.student,
      teacher=teacher,
      method=self.method,
      make_head=self.head,
      student_taps=self.pair.student_taps,
    )

  def train_step(self) -> TrainStep:
    """The pure train step."""
    return make_train_step(
      objective=self.objective(),
      method=self.method,
      tx=self.tx,
      learning_rate=self.learning_rate,
      context=self.context,
      accumulation=self.accumulation,
      spikes=self.spikes,
    )

  def statistics(self) -> Any:
    """`(params, teacher_params, batch, context) -> {name: [batch, places]}` of an evaluation."""
    return self._taught(self._statistics_of)

  def sums(self) -> Any:
    """`(params, teacher_params, batch, context) -> sums` of an evaluation."""
    vocab_size = self.teacher_tokenizer.vocab_size
    return self._taught(lambda t: evaluation.make_sums(self._statistics_of(t), vocab_size))

  def _statistics_of(self, teacher: TeacherSource) -> Any:
    student = self.pair.student
    if self.method.chunk_loss is not None:
      chunks = self.aligned_head(evaluation.evaluation_row_loss(self.method.chunk_loss))
      return evaluation.make_chunk_statistics(student=student, teacher=teacher, head=chunks)
    head = self.head(evaluation.evaluation_token_loss(self.method))
    return evaluation.make_token_statistics(student=student, teacher=teacher, head=head)

  def init_state(self, student_params: Params | None = None) -> TrainState:
    """The state before step 0, traceable; `student_params` replaces random initial values."""
    keys = jax.random.split(jax.random.key(self.seed), 3)
    params = {
      "student": self.pair.student.init(keys[0]) if student_params is None else student_params,
      "method": self.method.init_params(
        keys[1],
        student_dim=self.pair.student.config.dim,
        teacher_dim=self.pair.teacher.config.dim,
        num_taps=len(self.pair.student_taps),
      ),
    }
    return TrainState(
      step=jnp.int32(0),
      params=params,
      opt_state=self.tx.init(params),
      method_state=self.method.init_state(),
      guard=Guard.init(),
    )

  def abstract_state(self) -> TrainState:
    """Shapes, dtypes and shardings of the state."""
    shapes = jax.eval_shape(self.init_state)
    whole = sharding.replicated(self.mesh)
    param_shardings = {
      "student": sharding.parameter_shardings(
        self.mesh, self.pair.student.logical_axes(), shapes.params["student"]
      ),
      "method": jax.tree.map(lambda _: whole, shapes.params["method"]),
    }
    # The optimizer's moments lie where their parameters lie.
    opt_shardings = optax.tree_utils.tree_map_params(
      self.tx,
      lambda _, s: s,
      shapes.opt_state,
      param_shardings,
      transform_non_params=lambda _: whole,
    )
    shardings = shapes._replace(
      step=whole,
      params=param_shardings,
      opt_state=opt_shardings,
      method_state=jax.tree.map(lambda _: whole, shapes.method_state),
      guard=jax.tree.map(lambda _: whole, shapes.guard),
    )
    return restoring.abstract(shapes, shardings)

  def place_student(self) -> TrainState:
    """The initial state on the devices; random parameters never exist unsharded."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state())
    if self.pair.student_params is None:
      return jax.jit(self.init_state, out_shardings=shardings)()
    placed = sharding.place(self.pair.student_params, shardings.params["student"])
    return jax.jit(self.init_state, out_shardings=shardings)(placed)

  def abstract_teacher(self) -> Params:
    """Shapes, dtypes and shardings of the teacher's parameters."""
    teacher = self.pair.teacher
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, self.pair.teacher_dtype), shapes)
    shardings = sharding.parameter_shardings(
      *(self.teacher_mesh, teacher.logical_axes(), shapes), layers_on_host=self.teacher_on_host
    )
    return restoring.abstract(shapes, shardings)

  def place_teacher(self) -> Params:
    """The teacher's parameters on the devices, in the teacher's dtype."""
    like = self.abstract_teacher()
    shardings = jax.tree.map(lambda x: x.sharding, like)
    if self.pair.teacher_params is not None:
      cast = jax.tree.map(lambda x, shape: x.astype(shape.dtype), self.pair.teacher_params, like)
      return sharding.place(cast, shardings)
    key = jax.random.split(jax.random.key(self.seed), 3)[2]
    dtype = self.pair.teacher_dtype
    init = lambda: jax.tree.map(lambda x: x.astype(dtype), self.pair.teacher.init(key))
    # Compilers for CPUs do not come to an end with results in host memory.
    on_devices = jax.tree.map(lambda s: s.with_memory_kind("device"), shardings)
    return jax.device_put(jax.jit(init, out_shardings=on_devices)(), shardings)

  def beside_student(self, teacher_params: Params) -> Params:
    """What the student's programs take of the teacher: all, or its unembedding if separate."""
    if not self.separate:
      return teacher_params
    placed = self._abstract_unembedding()["unembedding"].sharding
    return {"unembedding": jax.device_put(self.pair.teacher.unembedding(teacher_params), placed)}

  def _abstract_unembedding(self) -> Params:
    unembedding = self.pair.teacher.unembedding
    shape = unembedding(self.abstract_teacher())
    axes = unembedding(self.pair.teacher.logical_axes())
    placed = sharding.parameter_shardings(self.mesh, axes, shape)
    return {"unembedding": jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=placed)}

  def abstract_batch(self) -> AnyBatch | Taught:
    """Shapes, dtypes and shardings of a train batch."""
    shape, rows = (self.batch_size, self.rows.seq_len), sharding.batch_sharding(self.mesh)
    ids = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    batch = Batch(ids, ids, ids, ids, jax.ShapeDtypeStruct(shape, jnp.bool_, sharding=rows))
    both = batch if self.rows.sides == 1 else PairedBatch(batch, batch, ids, ids)
    if not self.separate:
      return both
    shape, dtype = (*shape, self.pair.teacher.config.dim), self.pair.teacher_dtype
    hidden = jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
    return Taught(both, hidden, (hidden,) * len(self.pair.teacher_taps))

  def lower_step(self) -> jax.stages.Lowered:
    """The train step, `(state, teacher_params, batch) -> (state, metrics)`, ready to compile."""
    state = self.abstract_state()
    step = jax.jit(
      self.train_step(),
      # The state comes back where it was, in the memory of the one passed in.
      out_shardings=(jax.tree.map(lambda x: x.sharding, state), sharding.replicated(self.mesh)),
      donate_argnums=0,
      compiler_options=self.compiler_options or None,
    )
    teacher = self._abstract_unembedding() if self.separate else self.abstract_teacher()
    return step.lower(state, teacher, self.abstract_batch())

  def disk_bytes(self) -> int:
    """Bytes of the checkpoints (those that stay and one being written) and the export, about."""
    state = self.abstract_state()
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return (self.keep + self.keep_best + 1) * size(state) + size(state.params["student"])

  def context(self, step: jax.typing.ArrayLike, method_state: State) -> Context:
    """What the method reads during the step that follows `step` others."""
    progress = jnp.asarray(self.progress(step), jnp.float32)
    return Context(method_state, progress, position_in_run(step, self.steps))

  def context_after(self, state: TrainState) -> Context:
    """What the method reads when a state is evaluated: the context of the step made last.

    So an evaluation and the train metrics of one step have the same phi. Before training it is
    that of the first step.
    """
    return self.context(jnp.maximum(state.step - 1, 0), state.method_state)
