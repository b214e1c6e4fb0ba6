"""Tests of students cut out of a teacher."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from egad_jax.errors import InputError
from egad_jax.lazy_arrays import LazyArray, from_numpy
from egad_jax.models import student as students
from egad_jax.models.config import LayerKind
from egad_jax.models.model import make_model
from egad_jax.models.student import evenly_spaced, shape_from_layers


def student_from_layers(config, params, indices):
  lazy = jax.tree.map(
    lambda a: a if isinstance(a, LazyArray) else from_numpy(np.asarray(a)), params
  )
  return students.student_from_layers(config, lazy, indices)


@pytest.mark.parametrize("layers", range(1, 31))
def test_evenly_spaced_keeps_first_and_last(layers):
  chosen = evenly_spaced(30, layers)
  assert len(set(chosen)) == layers
  assert chosen[0] == 0
  assert layers == 1 or chosen[-1] == 29
  assert list(chosen) == sorted(chosen)
  assert np.ptp(np.diff(chosen)) <= 1 if layers > 2 else True


@pytest.mark.parametrize("layers", [0, 31])
def test_evenly_spaced_refuses(layers):
  with pytest.raises(InputError, match=rf"from 1 to the teacher's 30; got {layers}"):
    evenly_spaced(30, layers)


def test_keeps_the_chosen_layers(config, params):
  student, kept = student_from_layers(config, params, (2, 0))
  assert student == dataclasses.replace(config, num_layers=2)
  for new, old in enumerate((2, 0)):
    jax.tree.map(
      lambda a, b, i=new, j=old: np.testing.assert_array_equal(a[i], b[j]),
      kept["layers"],
      params["layers"],
    )
  np.testing.assert_array_equal(kept["embedding"], params["embedding"])
  shapes = jax.eval_shape(make_model(student).init, jax.random.key(0))
  jax.tree.map(lambda a, b: a.shape == b.shape or pytest.fail(f"{a.shape}"), kept, shapes)


def test_layers_that_are_not_kept_are_never_read(config, params):
  read = []

  def recorded(array):
    def fill(out, slices):
      read.append(slices[0])
      out[...] = array[slices]

    return LazyArray(array.shape, fill)

  teacher = params | {"layers": jax.tree.map(recorded, params["layers"])}
  kept = student_from_layers(config, teacher, (2, 0))[1]
  assert not read
  jax.tree.map(np.asarray, kept)
  assert {s.start for s in read} == {0, 2}
  assert all(s.stop == s.start + 1 for s in read)


def test_all_layers_are_the_teacher(config, params):
  student, kept = student_from_layers(config, params, range(3))
  assert student == config
  jax.tree.map(np.testing.assert_array_equal, kept, params)


@pytest.mark.slow
def test_kinds_go_with_their_layers(config):
  local, full = LayerKind(window=4), LayerKind()
  config = dataclasses.replace(config, num_layers=6, pattern=(local, local, full))
  params = jax.jit(make_model(config).init)(jax.random.key(0))
  # Layers 1, 2, 4, 5 are local, full, local, full: a pattern of two.
  student, kept = student_from_layers(config, params, (1, 2, 4, 5))
  assert student.pattern == (local, full)
  for new, old in enumerate((1, 2, 4, 5)):
    got = kept["layers"][f"block_{new % 2}"]["mlp"]["up"][new // 2]
    np.testing.assert_array_equal(got, params["layers"][f"block_{old % 3}"]["mlp"]["up"][old // 3])
  assert student_from_layers(config, params, (0, 2, 5))[0].pattern == (local, full, full)


@pytest.mark.slow
def test_layers_go_into_and_come_out_of_a_partial_period(config):
  local, full = LayerKind(window=4), LayerKind()
  config = dataclasses.replace(config, num_layers=5, pattern=(local, local, full))
  params = jax.device_get(jax.jit(make_model(config).init)(jax.random.key(0)))
  up = lambda params, place: params[place[0]][f"block_{place[1]}"]["mlp"]["up"][place[2]]
  # Layers 0, 2, 4 are local, full, local: a pattern of two and a half.
  student, kept = student_from_layers(config, params, (0, 2, 4))
  assert (student.pattern, student.tail) == ((local, full), (local,))
  for new, old in enumerate((0, 2, 4)):
    np.testing.assert_array_equal(up(kept, student.place(new)), up(params, config.place(old)))
  shapes = jax.eval_shape(make_model(student).init, jax.random.key(0))
  assert jax.tree.map(np.shape, kept) == jax.tree.map(np.shape, shapes)
  same, whole = student_from_layers(config, params, range(5))
  assert same == config
  jax.tree.map(np.testing.assert_array_equal, whole, params)


@pytest.mark.parametrize("layers", [(), (0, 3), (-1,)])
def test_impossible_layers_are_refused(config, params, layers):
  with pytest.raises(InputError, match="must be some of the teacher's, 0 to 2"):
    student_from_layers(config, params, layers)


def test_the_shape_is_the_same_without_parameters(config, params):
  assert shape_from_layers(config, (0, 2)) == student_from_layers(config, params, (0, 2))[0]
