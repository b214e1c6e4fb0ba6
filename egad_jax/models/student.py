"""Makes students from some of a teacher's layers and copies of all its other parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from egad_jax.errors import InputError
from egad_jax.lazy_arrays import stack
from egad_jax.models.config import DecoderConfig, shortest_pattern
from egad_jax.models.model import Params


def evenly_spaced(num_teacher_layers: int, num_layers: int) -> tuple[int, ...]:
  """Indices of `num_layers` layers spread over the teacher's, from the first to the last.

  A single layer is the first.

  Raises:
    InputError: `num_layers` is not from 1 to `num_teacher_layers`.

  >>> evenly_spaced(30, 4)
  (0, 10, 19, 29)
  """
  if not 1 <= num_layers <= num_teacher_layers:
    raise InputError(
      f"the student's number of layers must be from 1 to the teacher's {num_teacher_layers}; "
      f"got {num_layers}."
    )
  spaced = np.linspace(0, num_teacher_layers - 1, num_layers)
  return tuple(int(i) for i in np.round(spaced))


def shape_from_layers(config: DecoderConfig, layer_indices: Sequence[int]) -> DecoderConfig:
  """The architecture of a model made of some of another's layers.

  Args:
    config: the other model's architecture.
    layer_indices: the layers in order, counted from 0.

  Raises:
    InputError: there are no indices, or one is out of range.
  """
  if not layer_indices or not all(0 <= i < config.num_layers for i in layer_indices):
    raise InputError(
      f"the student's layers must be some of the teacher's, 0 to {config.num_layers - 1}; "
      f"got {tuple(layer_indices)}."
    )
  pattern = shortest_pattern([config.kind(i) for i in layer_indices])
  return dataclasses.replace(config, num_layers=len(layer_indices), pattern=pattern)


def student_from_layers(
  config: DecoderConfig, params: Params, layer_indices: Sequence[int]
) -> tuple[DecoderConfig, Params]:
  """Makes a student of some of a teacher's layers and all its parameters outside layers.

  Args:
    config: the teacher's architecture.
    params: the teacher's parameters, `LazyArray`s.
    layer_indices: the layers in order, counted from 0.

  Returns:
    The student's architecture and its parameters, which are not read: only the layers that it has
    are ever read.

  Raises:
    InputError: there are no indices, or one is out of range.
  """
  student = shape_from_layers(config, layer_indices)
  chosen: dict[str, dict[str, list[Params]]] = {}
  for layer, index in enumerate(layer_indices):
    group, slot, _ = student.place(layer)
    blocks = chosen.setdefault(group, {})
    blocks.setdefault(f"block_{slot}", []).append(_layer(config, params, index))
  stacked = {
    group: {
      name: jax.tree.map(lambda *arrays: stack(arrays), *layers) for name, layers in blocks.items()
    }
    for group, blocks in chosen.items()
  }
  rest = {name: value for name, value in params.items() if name not in ("layers", "tail")}
  return student, {**rest, **stacked}


def _layer(config: DecoderConfig, params: Params, index: int) -> Params:
  group, slot, repeat = config.place(index)
  return jax.tree.map(lambda a: a.item(repeat), params[group][f"block_{slot}"])
