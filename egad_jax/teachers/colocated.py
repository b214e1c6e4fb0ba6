"""A teacher on the student's devices, which runs inside the student's step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from egad_jax import device_arrays, sharding
from egad_jax.data.batches import AnyBatch
from egad_jax.models.model import Model
from egad_jax.teachers.outputs import Hidden
from egad_jax.types import Params


@dataclasses.dataclass(frozen=True)
class ColocatedTeacher:
  """A teacher whose model runs on one mesh; a `Teacher`.

  Attributes:
    model: the teacher's `init`, `apply` and unembedding functions.
    mesh: the devices of parameters and activations: the student's, unless this object is the `own`
      of a `SeparateTeacher`.
    host_params: the parameters, `LazyArray`s or arrays in host memory; None draws random ones from
      `seed`.
    dtype: dtype of the parameters on the devices; None keeps the dtype of each array.
    taps: indices of the layers whose output the feature loss compares; see `Model.apply`.
    layers_on_host: whether the weight matrices of the layers stay in host memory until a layer
      needs them.
    seed: seed of the random parameters; not read when `host_params` is given.
  """

  model: Model
  mesh: jax.sharding.Mesh
  host_params: Params | None = None
  dtype: Any = None
  taps: tuple[int, ...] = ()
  layers_on_host: bool = False
  seed: int = 0

  @property
  def meshes(self) -> tuple[jax.sharding.Mesh, ...]:
    """Empty: the teacher uses no devices but those of `mesh`."""
    return ()

  def abstract_params(self) -> Params:
    """Shapes, dtypes and shardings of the whole model's parameters."""
    shapes = jax.eval_shape(self.model.init, jax.random.key(0))
    shardings = sharding.parameter_shardings(
      self.mesh, self.model.logical_axes(), shapes, layers_on_host=self.layers_on_host
    )
    return jax.tree.map(
      lambda x, placed: jax.ShapeDtypeStruct(x.shape, self.dtype or x.dtype, sharding=placed),
      shapes,
      shardings,
    )

  def abstract_attached(self, batch: AnyBatch) -> tuple[()]:
    """Empty: the outputs are computed inside the student's programs."""
    del batch
    return ()

  def place(self) -> PlacedModel:
    """Puts the parameters on the devices; random parameters are drawn on the devices."""
    like = self.abstract_params()
    shardings = jax.tree.map(lambda x: x.sharding, like)
    if self.host_params is not None:
      dtypes = jax.tree.map(lambda x: x.dtype, like)
      return PlacedModel(device_arrays.put(self.host_params, shardings, dtypes))

    key = jax.random.split(jax.random.key(self.seed), 3)[2]

    def init() -> Params:
      return jax.tree.map(lambda x, shape: x.astype(shape.dtype), self.model.init(key), like)

    # On CPUs, compilation does not finish when results are to be in host memory.
    on_devices = jax.tree.map(lambda s: s.with_memory_kind("device"), shardings)
    return PlacedModel(jax.device_put(jax.jit(init, out_shardings=on_devices)(), shardings))

  def outputs(self, params: Params, batch: AnyBatch, *, with_taps: bool = False) -> Hidden:
    """Runs the model on the teacher's side of the batch; see `Teacher.outputs`."""
    side, taps = batch.teacher_side, self.taps if with_taps else ()
    hidden, tapped = self.model.apply(
      params, side.tokens, side.positions, side.segment_ids, taps=taps
    )
    return jax.lax.stop_gradient(Hidden(hidden, self.model.unembedding(params), tapped))


@dataclasses.dataclass(frozen=True)
class PlacedModel:
  """A `PlacedTeacher` that attaches nothing.

  Attributes:
    params: the whole model's parameters, on the student's devices.
  """

  params: Params

  @property
  def model_params(self) -> Params:
    """The parameters of the whole model, which are `params` themselves."""
    return self.params

  def attach(self, batches: Iterable[AnyBatch], accumulation: int = 1) -> Iterator[AnyBatch]:
    """Yields the batches unchanged."""
    del accumulation
    return iter(batches)
