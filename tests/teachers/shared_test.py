"""A teacher that several students share gives each what its own teacher gives."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from egad_jax import from_config
from egad_jax.teachers import ColocatedTeacher, SeparateTeacher, SharedTeacher, share
from egad_jax.training.compiled_run import CompiledRun
from tests.from_config.configs import changed

# Their layers overlap, and one has them in another order.
LAYERS = ("1:4,2:2", "1:2,2:3", "")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
  """A function that builds an experiment of the tiny config."""
  directory = tmp_path_factory.mktemp("run")
  texts = directory / "texts"
  texts.mkdir()
  for i in range(40):
    (texts / f"{i}.txt").write_text(f"Document {i} says that {i} and {i} make {2 * i}. " * 4)

  def make(devices, **values):
    base = {
      "data__source": str(texts),
      "data__cache": str(directory / "data"),
      "data__held_out_fraction": 0.2,
      "data__tokenizer": "train:270",
      "compilation_cache": "",
      "compiler_options": "xla_backend_optimization_level=0",
      "seq_len": 16,
    }
    return from_config.build(changed(**base | values), directory, devices=jax.devices()[:devices])

  return make


def changes_of(layers):
  return {"branch__layers": layers} if layers else {"method": "vanilla_kd"}


@pytest.fixture(scope="module")
def experiments(make):
  return [make(1, **changes_of(layers)) for layers in LAYERS]


@pytest.mark.slow
def test_each_student_reads_the_outputs_of_its_own_teacher(experiments):
  own = [experiment.teacher for experiment in experiments]
  views, placed = share(own), share(own)[0].place()
  run = CompiledRun(experiments[0])
  batch = next(run.train_batches(0, lambda: None))
  (attached,) = placed.attach([batch])
  abstract = views[0].abstract_attached(batch)
  for found, described in zip(
    jax.tree.leaves(attached.attached), jax.tree.leaves(abstract), strict=True
  ):
    assert (found.shape, found.dtype) == (described.shape, described.dtype)
    assert found.sharding.is_equivalent_to(described.sharding, found.ndim)
  # One for each layer that any of them reads, of 2, 3 and 4.
  assert len(attached.attached.taps) == 3
  for view, teacher in zip(views, own, strict=True):
    assert view.abstract_attached(batch) == abstract
    outputs = jax.jit(lambda p, b, of=teacher: of.outputs(p, b, with_taps=True))
    expected = outputs(run.frozen.teacher, batch)
    found = view.outputs(placed.params, attached, with_taps=True)
    assert len(found.taps) == len(expected.taps) == len(teacher.taps)
    for one, other in zip(found, expected, strict=True):
      np.testing.assert_array_equal(one, other)


def test_a_teacher_on_devices_of_its_own_is_shared_too(make):
  own = {"teacher__mesh__devices": 4, "batch_size": 8}
  teachers = [make(8, **own, **changes_of(layers)).teacher for layers in LAYERS[:2]]
  one, other = share(teachers)
  assert isinstance(one, SharedTeacher)
  assert isinstance(one.source, SeparateTeacher)
  assert one.source is other.source
  assert one.meshes == teachers[0].meshes
  for view, teacher in zip((one, other), teachers, strict=True):
    assert tuple(one.source.own.taps[i] for i in view.taps) == teacher.own.taps


def test_a_source_that_attaches_without_taps_is_shared_as_it_is():
  class Cached:
    pass

  cached = Cached()
  assert share([cached, Cached()]) == (cached, cached)
  assert not isinstance(cached, ColocatedTeacher)
