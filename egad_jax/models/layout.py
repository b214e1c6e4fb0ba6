"""The tensors of foreign checkpoints, and the parameters of ours to which they correspond.

A family lists its tensors once, as `Row`s; imports and exports in all formats follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from egad_jax.lazy_arrays import LazyArray, Slices, assign, stack
from egad_jax.models.config import DecoderConfig
from egad_jax.models.model import Params

# Parameters with a row for each id or position. All other parameters outside a product are vectors
# in files.
_TABLES = ("embedding", "unembedding", "positions")
# Rows and columns of a tile in which a matrix is transposed.
_TILE = 256


class Row(NamedTuple):
  """One line of a family's list of tensors.

  Attributes:
    ours: paths of the parameters that the tensor holds one after the other along its outputs; in a
      layer, below its block. The tensor exists if the architecture has the first of them.
    hf: name in Hugging Face safetensors, with {layer} and {expert} for their indices.
    gguf: name in GGUF; None if the family is not read from GGUF.
    in_out: whether a matrix is stored as `[in, out]` (Conv1D of transformers), not `[out, in]`.
  """

  ours: tuple[str, ...]
  hf: str
  gguf: str | None = None
  in_out: bool = False


def row(ours: str, hf: str, gguf: str | None = None, *, in_out: bool = False) -> Row:
  """A `Row` whose paths are separated by spaces, and whose names lack ".weight" or ".bias".

  The suffix is ".bias" if the parameters are biases.
  """
  paths = tuple(ours.split())
  suffix = ".bias" if paths[0].endswith("bias") else ".weight"
  return Row(paths, hf + suffix, None if gguf is None else gguf + suffix, in_out)


class _Axes(NamedTuple):
  """Shape of a parameter, without the axes of layers and experts."""

  inputs: tuple[int, ...]  # Axes that a product contracts; () if the parameter is in no product.
  outputs: tuple[int, ...]
  experts: int | None = None


class Part(NamedTuple):
  """A parameter, or one layer's part of it, that a tensor of a checkpoint holds.

  Attributes:
    path: keys of the parameter in the nested dict.
    at: indices on its leading axes, of layers and of experts; () if it is not in a layer.
    shape: shape of the part.
    contracted: number of its axes that a product contracts; they come first.
    start: the tensor's first output that it takes.
    width: number of the tensor's outputs that it takes.
    stacked: lengths of the leading axes.
  """

  path: tuple[str, ...]
  at: tuple[int, ...]
  shape: tuple[int, ...]
  contracted: int
  start: int
  width: int
  stacked: tuple[int, ...]


class _Range(NamedTuple):
  """Slices of some axes of a parameter, as a range of one axis in which the files have them all.

  Attributes:
    flat: the range; it covers the slices.
    shape: lengths of the axes in that range.
    inside: the slices within them.
  """

  flat: slice
  shape: tuple[int, ...]
  inside: Slices

  @classmethod
  def of(cls, shape: tuple[int, ...], slices: Slices) -> _Range:
    """Takes the range of the first axis, with all of the further ones."""
    first, *rest = slices
    size = math.prod(shape[1:])
    flat = slice(first.start * size, first.stop * size)
    return cls(flat, (first.stop - first.start, *shape[1:]), (slice(None), *rest))


class Tensor(NamedTuple):
  """One tensor of a checkpoint, and the parameters that it corresponds to.

  Attributes:
    hf: name in Hugging Face safetensors.
    gguf: name in GGUF; None if the family is not read from GGUF.
    shape: shape in the files.
    parts: the parameters that it holds, in order along its outputs.
    matrix: whether it is a matrix of a product, and not a vector or a table.
    in_out: whether the matrix is stored as `[in, out]`.
  """

  hf: str
  gguf: str | None
  shape: tuple[int, ...]
  parts: tuple[Part, ...]
  matrix: bool
  in_out: bool

  @property
  def first(self) -> str:
    """The path of its first parameter, as in a `Row`."""
    part = self.parts[0]
    return "/".join(part.path[2 if part.at else 0 :])

  def read_part(self, part: Part, slices: Slices, read: ReadTensor) -> np.ndarray:
    """The values of a part at `slices`, one for each axis of its shape.

    Args:
      part: one of `parts`.
      slices: slices with a start and a stop inside the axis.
      read: returns values of this tensor; called once, for no more than what covers `slices`.

    Returns:
      An array in the dtype of the files.
    """
    n = part.contracted
    if not self.matrix and len(self.shape) > 1:
      first, *rest = slices
      return read(self, (slice(part.start + first.start, part.start + first.stop), *rest))
    outputs = _Range.of(part.shape[n:], slices[n:])
    columns = slice(part.start + outputs.flat.start, part.start + outputs.flat.stop)
    if not self.matrix:
      return read(self, (columns,)).reshape(outputs.shape)[outputs.inside]
    inputs = _Range.of(part.shape[:n], slices[:n])
    if self.in_out:
      array = read(self, (inputs.flat, columns))
    else:
      array = _transposed(read(self, (columns, inputs.flat)))
    return array.reshape(inputs.shape + outputs.shape)[inputs.inside + outputs.inside]

  def join(self, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor of whole parts, in order; a view of a single part."""
    if not self.matrix:
      flat = [piece.reshape(-1, *self.shape[1:]) for piece in pieces]
      return flat[0] if len(flat) == 1 else np.concatenate(flat)
    widths = (part.width for part in self.parts)
    columns = [piece.reshape(-1, width) for piece, width in zip(pieces, widths, strict=True)]
    array = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1)
    return array if self.in_out else array.T


def _transposed(array: np.ndarray) -> np.ndarray:
  """A transposed copy of a matrix, made in tiles that fit a cache: several times as fast."""
  rows, columns = array.shape
  out = np.empty((columns, rows), array.dtype)
  # NumPy copies integers faster than dtypes that it does not know.
  bits = np.dtype(f"u{array.dtype.itemsize}")
  source, target = array.view(bits), out.view(bits)
  for i in range(0, rows, _TILE):
    for j in range(0, columns, _TILE):
      target[j : j + _TILE, i : i + _TILE] = source[i : i + _TILE, j : j + _TILE].T
  return out


# `(tensor, slices) -> values`: the values of a tensor, in the dtype of the files, at `slices`: one
# for each axis of its shape.
ReadTensor: TypeAlias = Callable[[Tensor, Slices], np.ndarray]
# `(array, at) -> values` of an array at indices of its first axes, () for all of it.
Fetch: TypeAlias = Callable[[Any, tuple[int, ...]], np.ndarray]


def tensors(rows: Sequence[Row], config: DecoderConfig) -> list[Tensor]:
  """All tensors of a checkpoint of an architecture, from its family's rows."""
  whole, in_layer = _outside_layers(config), _in_layer(config)
  found = [
    _tensor(r, [((path,), whole[path], (), ()) for path in r.ours])
    for r in rows
    if r.ours[0] in whole
  ]
  layer_rows = [r for r in rows if r.ours[0] in in_layer]
  for layer in range(config.num_layers):
    group, slot, repeat = config.place(layer)
    stacked = config.repeats if group == "layers" else 1
    for r in layer_rows:
      experts = in_layer[r.ours[0]].experts
      for expert in range(experts) if experts is not None and "{expert}" in r.hf else (None,):
        places = []
        for path in r.ours:
          axes = in_layer[path]
          own = () if expert is None else (expert,)
          lengths = () if axes.experts is None else (axes.experts,)
          keys = (group, f"block_{slot}", *path.split("/"))
          places.append((keys, axes, (repeat, *own), (stacked, *lengths)))
        found.append(_tensor(r, places, layer=layer, expert=expert))
  return found


def _tensor(
  r: Row,
  places: Sequence[tuple[tuple[str, ...], _Axes, tuple[int, ...], tuple[int, ...]]],
  **indices: Any,
) -> Tensor:
  axes = places[0][1]
  is_table = places[0][0][0] in _TABLES
  parts, total = [], 0
  for path, (ins, outs, _), index, stacked in places:
    width = outs[0] if is_table else math.prod(outs)
    path = tuple(key for name in path for key in name.split("/"))
    parts.append(Part(path, index, ins + outs, len(ins), total, width, stacked))
    total += width
  shape: tuple[int, ...] = (total, *axes.outputs[1:]) if is_table else (total,)
  if axes.inputs:
    contracted = math.prod(axes.inputs)
    shape = (contracted, total) if r.in_out else (total, contracted)
  gguf = None if r.gguf is None else r.gguf.format(**indices)
  name = r.hf.format(**indices)
  return Tensor(name, gguf, shape, tuple(parts), bool(axes.inputs), r.in_out)


def _outside_layers(c: DecoderConfig) -> dict[str, _Axes]:
  found = {"embedding": _Axes((), (c.vocab_size, c.dim))}
  if c.learned_positions:
    found["positions"] = _Axes((), (c.max_seq_len, c.dim))
  found["final_norm/scale"] = _Axes((), (c.dim,))
  if c.layer_norm:
    found["final_norm/bias"] = _Axes((), (c.dim,))
  if not c.tie_embeddings:
    found["unembedding"] = _Axes((), (c.vocab_size, c.dim))
  return found


def _in_layer(c: DecoderConfig) -> dict[str, _Axes]:
  """Axes of each parameter of a layer by its path below the block."""
  dim, queries, keys = (c.dim,), (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
  found = {
    "attention/query": _Axes(dim, queries),
    "attention/key": _Axes(dim, keys),
    "attention/value": _Axes(dim, keys),
    "attention/output": _Axes(queries, dim),
  }
  if c.qkv_bias:
    sizes = {"query": queries, "key": keys, "value": keys}
    found |= {f"attention/{name}_bias": _Axes((), size) for name, size in sizes.items()}
  if c.attention_bias:
    found["attention/output_bias"] = _Axes((), dim)
  if c.qk_norm:
    for name, size in {"query": queries, "key": keys}.items():
      scale = size if c.qk_norm_over_heads else size[1:]
      found[f"attention/{name}_norm/scale"] = _Axes((), scale)
  found |= _mlp(c)
  norms = [name for name in ("attention_norm", "mlp_norm") if c.pre_norms]
  norms += [name for name in ("attention_post_norm", "mlp_post_norm") if c.post_norms]
  for name in norms:
    found[f"{name}/scale"] = _Axes((), dim)
    if c.layer_norm:
      found[f"{name}/bias"] = _Axes((), dim)
  return found


def _mlp(c: DecoderConfig) -> dict[str, _Axes]:
  dim = (c.dim,)
  inner = (c.mlp_dim if c.experts is None else c.experts.mlp_dim,)
  count = None if c.experts is None else c.experts.count
  found = {"mlp/up": _Axes(dim, inner, count), "mlp/down": _Axes(inner, dim, count)}
  if c.gated_mlp:
    found["mlp/gate"] = _Axes(dim, inner, count)
  if count is not None:
    found["mlp/router"] = _Axes(dim, (count,))
  if c.mlp_bias:
    found |= {f"{path}_bias": _Axes((), axes.outputs) for path, axes in list(found.items())}
  return found


def assemble(found: Sequence[Tensor], read: ReadTensor) -> Params:
  """Describes the parameters of a model that a checkpoint holds; reads nothing yet.

  Args:
    found: all tensors of the checkpoint, from `tensors`.
    read: returns values of a tensor; called whenever a parameter is read, from several threads.

  Returns:
    `LazyArray`s in the layout of `Model.init`.
  """
  pieces: dict[tuple[str, ...], dict[tuple[int, ...], LazyArray]] = {}
  lengths: dict[tuple[str, ...], tuple[int, ...]] = {}
  for tensor in found:
    for part in tensor.parts:
      pieces.setdefault(part.path, {})[part.at] = _lazy(tensor, part, read)
      lengths[part.path] = part.stacked
  params: Params = {}
  for path, by_index in pieces.items():
    node = params
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = _stacked(by_index, (), lengths[path])
  return params


def _lazy(tensor: Tensor, part: Part, read: ReadTensor) -> LazyArray:
  return LazyArray(
    part.shape, lambda out, slices: assign(out, tensor.read_part(part, slices, read))
  )


def _stacked(
  pieces: Mapping[tuple[int, ...], LazyArray], at: tuple[int, ...], lengths: tuple[int, ...]
) -> LazyArray:
  if not lengths:
    return pieces[at]
  return stack([_stacked(pieces, (*at, i), lengths[1:]) for i in range(lengths[0])])


def take_apart(
  found: Sequence[Tensor],
  params: Params,
  fetch: Fetch | None = None,
) -> Iterator[tuple[Tensor, np.ndarray]]:
  """Each tensor with its values in the layout of Hugging Face's files; undoes `assemble`.

  Args:
    found: the tensors, in the order in which they are wanted.
    params: arrays in the layout of `Model.init`, on the host or on devices. A table may have more
      rows than the tensor: those are left out.
    fetch: copies an array, or its entry, to the host; None if NumPy can.
  """
  fetch = fetch or (lambda array, at: np.asarray(array[at] if at else array))
  for tensor in found:
    pieces = []
    for part in tensor.parts:
      node: Any = params
      for key in part.path:
        node = node[key]
      pieces.append(fetch(node, part.at)[: part.shape[0]])
    yield tensor, tensor.join(pieces)


def by_name(found: Sequence[Tensor], params: Params) -> Mapping[str, np.ndarray]:
  """Hugging Face name -> contiguous array in the layout of its files, from parameters."""
  return {t.hf: np.ascontiguousarray(array) for t, array in take_apart(found, params)}
