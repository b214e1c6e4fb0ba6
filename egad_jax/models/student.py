"""Makes students from some of a teacher's layers and copies of all its other parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig, LayerKind
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
  pattern = _shortest_pattern([config.kind(i) for i in layer_indices])
  return dataclasses.replace(config, num_layers=len(layer_indices), pattern=pattern)


def student_from_layers(
  config: DecoderConfig, params: Params, layer_indices: Sequence[int]
) -> tuple[DecoderConfig, Params]:
  """Makes a student of some of a teacher's layers and all its parameters outside layers.

  Args:
    config: the teacher's architecture.
    params: the teacher's parameters.
    layer_indices: the layers in order, counted from 0.

  Returns:
    The student's architecture and parameters, numpy arrays that share no memory with the
    teacher's.

  Raises:
    InputError: there are no indices, or one is out of range.
  """
  student = shape_from_layers(config, layer_indices)
  pattern = student.pattern
  layers = {}
  for slot in range(len(pattern)):
    chosen = [_layer(config, params, i) for i in layer_indices[slot :: len(pattern)]]
    layers[f"block_{slot}"] = jax.tree.map(lambda *arrays: np.stack(arrays), *chosen)
  rest = {name: value for name, value in params.items() if name != "layers"}
  return student, {**jax.tree.map(np.array, rest), "layers": layers}


def _layer(config: DecoderConfig, params: Params, index: int) -> Params:
  repeat, slot = divmod(index, len(config.pattern))
  return jax.tree.map(lambda a: np.asarray(a[repeat]), params["layers"][f"block_{slot}"])


def _shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
  """The shortest pattern whose repetition gives `kinds`."""
  lengths = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0)
  fits = (n for n in lengths if all(kinds[i] == kinds[i % n] for i in range(len(kinds))))
  return tuple(kinds[: next(fits)])
