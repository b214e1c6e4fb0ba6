"""The device mesh, and which array axis is split over which of its axes.

Only this module spells the names of mesh axes. Models give the axes of their arrays logical names
("vocab", "heads", …). `RULES` says over which mesh axes a logical axis is split; everything else
here applies that table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from egad_jax.errors import InputError

# replica: copies across slow links; data: copies inside a slice; fsdp: parameters split, gathered
# layer by layer; tensor: one layer's matmuls split.
AXES = ("replica", "data", "fsdp", "tensor")
BATCH_AXES = ("replica", "data", "fsdp")
# jax's name of the host memory that devices can read.
HOST = "pinned_host"
# The batch is not split over this axis; the head splits the vocabulary or the tokens over it.
TENSOR_AXIS = "tensor"

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
  ("batch", BATCH_AXES),
  # Both are for the look-up of embeddings. There fsdp splits the columns, so it does not split the
  # batch's rows, and every device has all ids.
  ("batch_copies", ("replica", "data")),
  ("vocab_whole", None),
  ("seq", None),
  ("layers", None),
  ("vocab", "tensor"),
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("head_dim", None),
  ("mlp", "tensor"),
  ("experts", "tensor"),
  ("taps", None),
)

LogicalAxes = tuple[str | None, ...]


def make_mesh(
  shape: Mapping[str, int], devices: Sequence[Any] | None = None, *, name: str = "mesh"
) -> Mesh:
  """The device mesh of a config.

  TPU slices, which only slow links connect, are arranged along the replica axis, so that no other
  axis crosses from one slice to another.

  Args:
    shape: number of devices along each of `AXES`; one of them may be -1, the devices left over.
    devices: the devices to use; None for all devices of all processes.
    name: name of the config's group, for messages.

  Raises:
    InputError: the sizes are not positive, more than one is -1, or they do not match the devices,
      their slices or the links between them.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [int(shape[axis]) for axis in AXES]
  given = ", ".join(f"{name}.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise InputError(f"mesh axes must be positive, at most one of them -1; got {given}.")
  known = math.prod(size for size in sizes if size != -1)
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if math.prod(sizes) != len(devices):
    fitting = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    raise InputError(
      f"the mesh must use all {len(devices)} devices; got {given}, a product of {known}. "
      "Set one axis to -1 to give it the devices left over, and the others so that their product "
      f"is one of {', '.join(fitting)}."
    )
  return Mesh(_by_slices(sizes, devices, name), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _by_slices(sizes: Sequence[int], devices: Sequence[Any], name: str) -> np.ndarray:
  """The devices of a mesh as an array of these sizes, with the replica axis across slices."""
  slices: dict[int, list[Any]] = {}
  for device in devices:
    # On GPUs every host counts as a slice, but any axis may cross hosts there.
    index = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
    slices.setdefault(index, []).append(device)
  counts = {index: len(members) for index, members in sorted(slices.items())}
  replicas, *rest = sizes
  if replicas % len(slices):
    raise InputError(
      f"the devices are {len(slices)} slices with slow links between them, and {name}.replica must "
      f"be a multiple of that; got {replicas}. Set {name}.replica={len(slices)}, or to -1 with the "
      "other axes those of one slice."
    )
  if len(set(counts.values())) > 1:
    raise InputError(f"every slice must have as many devices; got {counts} (slice: devices).")
  shape = (replicas // len(slices), *rest)
  try:
    blocks = [jax.make_mesh(shape, AXES, devices=slices[i]).devices for i in counts]
  except (AssertionError, NotImplementedError) as error:
    axes = ", ".join(f"{name}.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    raise InputError(
      f"{axes} does not fit the links between these {len(devices)} devices; they must be "
      "a block of the topology, and axes products of its sides."
    ) from error
  return np.concatenate(blocks)


def partition_spec(axes: LogicalAxes) -> PartitionSpec:
  """The mesh axes over which an array with these logical axes is split; None is not split.

  Raises:
    ValueError: a name is not in `RULES`, or two axes would be split over the same mesh axis.
  """
  table = dict(RULES)
  if unknown := [name for name in axes if name is not None and name not in table]:
    raise ValueError(f"logical axes {unknown} have no rule; add them to sharding.RULES.")
  spec = [None if name is None else table[name] for name in axes]
  used = [
    axis for entry in spec if entry for axis in ([entry] if isinstance(entry, str) else entry)
  ]
  if len(set(used)) != len(used):
    raise ValueError(f"logical axes {axes} collide: they split two array axes over {used}.")
  return PartitionSpec(*spec)


def _dividing(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """`spec` without the entries that do not divide their array axis, as 3 heads over 2 devices."""
  entries = []
  for size, entry in zip(shape, spec, strict=True):
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    entries.append(entry if size % math.prod(mesh.shape[n] for n in names) == 0 else None)
  return PartitionSpec(*entries)


def parameter_shardings(
  mesh: Mesh, logical_axes: Any, shapes: Any, *, layers_on_host: bool = False
) -> Any:
  """A tree of shardings for parameters.

  Args:
    mesh: a mesh from `make_mesh`.
    logical_axes: tree of tuples of logical names, of the same structure as the parameters.
    shapes: the parameters, or their `jax.ShapeDtypeStruct`s. An array axis that its mesh axes do
      not divide is not split.
    layers_on_host: whether the matrices of layers are kept in the memory of the devices' host.
  """

  def of_leaf(leaf, axes):
    found = NamedSharding(mesh, _dividing(partition_spec(axes), leaf.shape, mesh))
    # TPUs cannot slice vectors of a two-byte dtype out of host memory. They are small, so they stay
    # on the devices.
    on_host = layers_on_host and "layers" in axes and len(axes) > 2
    return found.with_memory_kind(HOST) if on_host else found

  return jax.tree.map(of_leaf, shapes, logical_axes)


def has_host_memory(mesh: Mesh) -> bool:
  """Whether the devices' programs can read arrays that are in the memory of their host."""
  return any(memory.kind == HOST for memory in mesh.devices.flat[0].addressable_memories())


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a [batch, ...] array whose rows are split over the batch axes."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_devices(mesh: Mesh) -> int:
  """The number of parts that the rows of a batch are split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def tensor_devices(mesh: Mesh) -> int:
  """The number of parts that matmuls are split into, and the head's vocabulary or tokens."""
  return mesh.shape[TENSOR_AXIS]


def constrain(mesh: Mesh | None) -> Callable[[jax.Array, LogicalAxes], jax.Array]:
  """Returns (activation, logical axes) -> the activation with its sharding on the mesh pinned.

  Args:
    mesh: a mesh from `make_mesh`; None to pin nothing.
  """
  if mesh is None:
    return lambda x, axes: x

  copies = mesh.shape["replica"] * mesh.shape["data"]
  pins_look_up = copies > 1 and mesh.shape["fsdp"] > 1

  def pin(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    # Without copies, or without fsdp, compilers find a look-up of their own that communicates less.
    if not pins_look_up and {"batch_copies", "vocab_whole"} & set(axes):
      return x
    spec = _dividing(partition_spec(axes), x.shape, mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  return pin


def split(
  mesh: Mesh, function: Callable[..., jax.Array], axes: Sequence[LogicalAxes]
) -> Callable[..., jax.Array]:
  """Makes a function that runs `function` on each device with its own parts of the arrays.

  This is for kernels, which the compiler cannot split. An array axis that its mesh axes do not
  divide is not split, and the devices along them repeat each other's work.

  Args:
    mesh: a mesh from `make_mesh`.
    function: a function of arrays that returns one array with the axes of the first.
    axes: the logical axes of each argument.
  """

  def on_parts(*arrays: jax.Array) -> jax.Array:
    specs = tuple(
      _dividing(partition_spec(names), x.shape, mesh) for names, x in zip(axes, arrays, strict=True)
    )
    # check_vma is off because kernels do not say over which mesh axes their results vary.
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(
      *arrays
    )

  return on_parts


def experts_axis(mesh: Mesh, count: int) -> str | None:
  """The mesh axis over which `count` experts are split; None if every device has all of them."""
  axis = dict(RULES)["experts"]
  assert isinstance(axis, str)
  return axis if mesh.shape[axis] > 1 and count % mesh.shape[axis] == 0 else None


def head_devices(mesh: Mesh) -> int:
  """The number of parts that attention heads are split into, if it divides their number."""
  axis = dict(RULES)["heads"]
  return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))


def _parts(mesh: Mesh, process_index: int) -> list[int]:
  """The indices, along the rows, of the batch's parts that the devices of a process hold."""
  parts = batch_devices(mesh)
  indices: dict[Any, Any] = {**batch_sharding(mesh).devices_indices_map((parts, 1))}
  held = (index[0] for device, index in indices.items() if device.process_index == process_index)
  return sorted({rows.indices(parts)[0] for rows in held})


def process_rows(mesh: Mesh, batch_size: int, process_index: int | None = None) -> list[int]:
  """The rows of a global batch that the devices of a process hold, in ascending order.

  They need not be contiguous. Two processes hold the same rows if a mesh axis that does not split
  the batch crosses them.

  Args:
    mesh: a mesh from `make_mesh`.
    batch_size: rows of the global batch, a multiple of `batch_devices`.
    process_index: index of the process; None for this one.
  """
  size = batch_size // batch_devices(mesh)
  parts = _parts(mesh, jax.process_index() if process_index is None else process_index)
  return [row for part in parts for row in range(part * size, (part + 1) * size)]


def device_put_batch(batch: Any, mesh: Mesh) -> Any:
  """Puts this process's rows of a batch on its devices, as its part of global [batch, ...] arrays.

  Args:
    batch: a tree of host arrays [rows, ...] with the rows of `process_rows`, in that order.
    mesh: a mesh from `make_mesh`.
  """
  sharding, parts = batch_sharding(mesh), _parts(mesh, jax.process_index())

  def put(x):
    size = len(x) // len(parts)

    def rows(index):
      start = parts.index((index[0].start or 0) // size) * size
      return x[start : start + size]

    shape = (size * batch_devices(mesh), *x.shape[1:])
    return jax.make_array_from_callback(shape, sharding, rows)

  return jax.tree.map(put, batch)


def micro_batches(batch: Any, accumulation: int) -> Any:
  """Splits the rows of a batch: [batch, ...] -> [accumulation, batch / accumulation, ...].

  Micro-batch m takes rows m, m + accumulation, ...: no row then leaves the device that holds it.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1),
    batch,
  )


def join_micro_batches(parts: Any) -> Any:
  """The inverse of `micro_batches`: [accumulation, batch / accumulation, ...] -> [batch, ...]."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def move_rows(x: jax.Array, mesh: Mesh) -> jax.Array:
  """Copies a [batch, ...] array that is split by rows to another mesh of this process.

  The copies go from device to device and may still be in flight when this returns.
  (`jax.device_put` waits for the array, and copies it through the host if the two meshes split the
  rows differently.)
  """
  sharding = batch_sharding(mesh)
  held = {shard.index[0].indices(len(x))[0]: shard.data for shard in x.addressable_shards}
  arrays = []
  for device, index in sharding.devices_indices_map(x.shape).items():
    start, stop, _ = index[0].indices(len(x))
    pieces = [
      jax.device_put(data[max(start - first, 0) : stop - first], device)
      for first, data in sorted(held.items())
      if first < stop and start < first + len(data)
    ]
    arrays.append(pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces))
  return jax.make_array_from_single_device_arrays(x.shape, sharding, arrays)
