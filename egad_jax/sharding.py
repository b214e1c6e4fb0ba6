"""The only place that spells a mesh axis: the mesh, and which array axis is split over what.

Models name the axes of their arrays logically ("vocab", "heads", …). `RULES` says which mesh axes a
logical axis is split over; everything else here applies that table.
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
# As jax calls memory of the host that devices can read.
HOST = "pinned_host"
# What the batch leaves unused: the head splits the vocabulary over it, or positions.
TENSOR_AXIS = "tensor"

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
  ("batch", BATCH_AXES),
  # During the look-up of embeddings: rows of the batch, since columns are split over fsdp, and ids.
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
  ("taps", None),
)

LogicalAxes = tuple[str | None, ...]


def make_mesh(
  shape: Mapping[str, int], devices: Sequence[Any] | None = None, *, name: str = "mesh"
) -> Mesh:
  """The device mesh of a config.

  Slices of TPUs, which only slow links connect, lie along the replica axis: every slice has whole
  rows of it, so that no other axis leaves a slice.

  Args:
    shape: devices along each of `AXES`; one of them may be -1, the devices left over.
    devices: the devices to use; all of the process group's if None.
    name: of the config's group, for messages.

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
  """The devices of a mesh of these sizes, the replica axis across slices."""
  slices: dict[int, list[Any]] = {}
  for device in devices:
    # GPUs call every host a slice; any axis may go across those.
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
  """The mesh axes of an array whose axes have these logical names (None: not split).

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
  """`spec` without the entries that do not divide their array axis (3 heads over 2 devices)."""
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
    mesh: from `make_mesh`.
    logical_axes: tree of tuples of logical names, of the same structure as the parameters.
    shapes: the parameters, or their `jax.ShapeDtypeStruct`s. An axis that its mesh axes do not
      divide stays whole.
    layers_on_host: whether the matrices of layers lie in the memory of the devices' host.
  """

  def of_leaf(leaf, axes):
    found = NamedSharding(mesh, _dividing(partition_spec(axes), leaf.shape, mesh))
    # TPUs do not slice vectors of two bytes a value out of host memory; they are small.
    on_host = layers_on_host and "layers" in axes and len(axes) > 2
    return found.with_memory_kind(HOST) if on_host else found

  return jax.tree.map(of_leaf, shapes, logical_axes)


def has_host_memory(mesh: Mesh) -> bool:
  """Whether arrays can lie in the memory of the devices' host and be read by their programs."""
  return any(memory.kind == HOST for memory in mesh.devices.flat[0].addressable_memories())


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows of a [batch, ...] array are split over the batch axes."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_devices(mesh: Mesh) -> int:
  """The number of parts that a batch is split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def tensor_devices(mesh: Mesh) -> int:
  """The number of parts that matmuls are split into, and the head's vocabulary or rows."""
  return mesh.shape[TENSOR_AXIS]


def constrain(mesh: Mesh | None) -> Callable[[jax.Array, LogicalAxes], jax.Array]:
  """The function by which a model pins an activation's logical axes to the mesh."""
  if mesh is None:
    return lambda x, axes: x

  copies = mesh.shape["replica"] * mesh.shape["data"]
  pins_look_up = copies > 1 and mesh.shape["fsdp"] > 1

  def pin(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    # With only one of the two, compilers find a way of their own that sends less.
    if not pins_look_up and {"batch_copies", "vocab_whole"} & set(axes):
      return x
    spec = _dividing(partition_spec(axes), x.shape, mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  return pin


def split(
  mesh: Mesh, function: Callable[..., jax.Array], axes: Sequence[LogicalAxes]
) -> Callable[..., jax.Array]:
  """Runs `function` on each device with its own parts of the arrays.

  For kernels, which the compiler cannot split. An axis that its mesh axes do not divide stays
  whole, and the devices along them repeat each other's work.

  Args:
    mesh: from `make_mesh`.
    function: from arrays to one array with the axes of the first.
    axes: the logical axes of each argument.
  """

  def on_parts(*arrays: jax.Array) -> jax.Array:
    specs = tuple(
      _dividing(partition_spec(names), x.shape, mesh) for names, x in zip(axes, arrays, strict=True)
    )
    # Kernels do not say over which axes their results vary, so that this cannot be checked.
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(
      *arrays
    )

  return on_parts


def head_devices(mesh: Mesh) -> int:
  """The number of parts that attention heads are split into, if it divides their number."""
  axis = dict(RULES)["heads"]
  return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))


def place(tree: Any, shardings: Any) -> Any:
  """Host arrays, the same on every process, as global arrays."""

  def put(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(put, tree, shardings)


def _parts(mesh: Mesh, process_index: int) -> list[int]:
  """Which of the parts of a batch, counted along its rows, the devices of a process hold."""
  parts = batch_devices(mesh)
  indices: dict[Any, Any] = {**batch_sharding(mesh).devices_indices_map((parts, 1))}
  held = (index[0] for device, index in indices.items() if device.process_index == process_index)
  return sorted({rows.indices(parts)[0] for rows in held})


def process_rows(mesh: Mesh, batch_size: int, process_index: int | None = None) -> list[int]:
  """The rows of a global batch that the devices of a process hold, in ascending order.

  They need not be contiguous, and two processes hold the same rows if an axis that does not split
  the batch goes across them.

  Args:
    mesh: from `make_mesh`.
    batch_size: rows of the global batch, a multiple of `batch_devices`.
    process_index: which process; None for this one.
  """
  size = batch_size // batch_devices(mesh)
  parts = _parts(mesh, jax.process_index() if process_index is None else process_index)
  return [row for part in parts for row in range(part * size, (part + 1) * size)]


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """This process's rows, those of `process_rows`, as its part of global [batch, seq] arrays."""
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

  Micro-batch m takes rows m, m + accumulation, ...: rows then stay on the device that holds them.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1),
    batch,
  )


def join_micro_batches(parts: Any) -> Any:
  """The inverse of `micro_batches`."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def move_rows(x: jax.Array, mesh: Mesh) -> jax.Array:
  """A [batch, ...] array that is split by rows, on another mesh of this process.

  It is on its way when this returns: the copies are from device to device. (`jax.device_put` waits
  for the array and sends it by the host wherever the two meshes do not cut the rows alike.)
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
