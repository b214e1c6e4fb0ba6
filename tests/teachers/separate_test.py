"""Where the teacher lives changes nothing that a run computes."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import from_config, sharding
from egad_jax.sharding import join_micro_batches, micro_batches
from egad_jax.teachers.separate import AHEAD, PlacedSeparateTeacher
from egad_jax.training.compiled_run import CompiledRun
from tests.from_config.configs import changed

STEPS = 3
# On the last four of the eight devices, which cut rows in two where the student's cut them in four.
OWN = {"teacher__mesh__devices": 4, "teacher__mesh__fsdp": 2, "teacher__mesh__tensor": 2}
FAST_COMPILE = "xla_backend_optimization_level=0,xla_llvm_disable_expensive_passes=True"


@pytest.fixture(scope="module")
def make(tmp_path_factory):
  """A function that makes the programs of the tiny config with features of two layers."""
  directory = tmp_path_factory.mktemp("run")
  texts = directory / "texts"
  texts.mkdir()
  for i in range(40):
    (texts / f"{i}.txt").write_text(f"Document {i} says that {i} and {i} make {2 * i}. " * 4)

  def programs(**values):
    base = {
      "data__source": str(texts),
      "data__cache": str(directory / "data"),
      "data__held_out_fraction": 0.2,
      "data__tokenizer": "train:270",
      "compilation_cache": "",
      "compiler_options": FAST_COMPILE,
      "accumulation": 2,
      "branch__layers": "uniform:2",
      "eval__rows": 8,
      "eval__sample_tokens": 4,
    }
    own = values.get("teacher__mesh__devices")
    devices = jax.devices() if own else jax.devices()[:4]
    return CompiledRun(from_config.build(changed(**base | values), directory, devices=devices))

  return programs


def trained(programs):
  """The losses of some steps from a filled state, and that state."""
  filled = programs.fill(programs.experiment.first_state())
  step, state, losses = programs.compile(filled), filled, []
  # The step takes the memory of its state.
  state = jax.tree.map(jnp.copy, filled)
  for batch in itertools.islice(programs.train_batches(0, lambda: filled), STEPS):
    with jax.transfer_guard("disallow"):
      state, metrics = step(state, programs.frozen, batch)
    total, count = jax.device_get(metrics["loss"])
    assert jax.device_get(metrics["feature_loss"])[0] > 0
    losses.append(total / count)
  return losses, filled


@pytest.fixture(scope="module")
def colocated(make):
  programs = make()
  return programs, *trained(programs)


# `tests/launch/continuing_test.py` has a run whose teacher moves to host memory half way.
@pytest.mark.slow
def test_layers_in_host_memory(make, colocated):
  programs = make(teacher__placement="host")
  kinds = jax.tree.map(lambda x: x.sharding.memory_kind, programs.frozen.teacher)
  assert kinds["layers"]["block_0"]["mlp"]["up"] == "pinned_host"
  assert kinds["layers"]["block_0"]["mlp_norm"]["scale"] == "device"
  assert kinds["embedding"] == "device"
  losses, _ = trained(programs)
  np.testing.assert_allclose(losses, colocated[1], rtol=1e-5)
  assert programs.continuations(None) == colocated[0].continuations(None)


@pytest.mark.slow
def test_a_mesh_of_its_own(make, colocated):
  programs, (shared, wanted, shared_state) = make(**OWN), colocated
  run = programs.experiment
  (mesh,) = run.teacher.meshes
  assert set(mesh.devices.flat) == set(jax.devices()[4:])
  assert set(run.mesh.devices.flat) == set(jax.devices()[:4])
  assert programs.frozen.teacher.keys() == {"unembedding"}
  losses, state = trained(programs)
  np.testing.assert_allclose(losses, wanted, rtol=1e-5)
  found, expected = programs.evaluate(state), shared.evaluate(shared_state)
  assert found["tokens"] == expected["tokens"]
  for who in ("student", "teacher"):
    assert found[who] == pytest.approx(expected[who], rel=1e-5, abs=1e-6)
  assert programs.continuations(None) == shared.continuations(None)


@pytest.mark.parametrize(
  ("shapes", "tensors"), [((4, 2), (1, 2)), ((2, 4), (2, 1)), ((3, 4), (1, 1)), ((4, 4), (1, 1))]
)
def test_rows_move_from_device_to_device(shapes, tensors):
  x = np.arange(24.0 * 3, dtype=np.float32).reshape(24, 3)
  devices = iter(jax.devices())
  meshes = [
    sharding.make_mesh(
      {"replica": 1, "data": parts, "fsdp": 1, "tensor": tensor},
      list(itertools.islice(devices, parts * tensor)),
    )
    for parts, tensor in zip(shapes, tensors, strict=True)
  ]
  placed = sharding.device_put_batch(x, meshes[0])
  with jax.transfer_guard_device_to_host("disallow"):
    moved = sharding.move_rows(placed, meshes[1])
  assert moved.sharding == sharding.batch_sharding(meshes[1])
  np.testing.assert_array_equal(moved, x)


def test_a_separate_teacher_is_two_batches_ahead(monkeypatch):
  asked = []
  monkeypatch.setattr(
    PlacedSeparateTeacher, "_attached", lambda self, batch, accumulation: asked.append(1) or batch
  )
  teacher, taken = PlacedSeparateTeacher.__new__(PlacedSeparateTeacher), []
  for batch in teacher.attach(range(10)):
    taken.append(batch)
    assert len(asked) == min(len(taken) + AHEAD, 10)
  assert taken == list(range(10))


def test_micro_batches_joined_are_the_batch():
  batch = {"x": np.arange(48).reshape(8, 3, 2)}
  np.testing.assert_array_equal(join_micro_batches(micro_batches(batch, 4))["x"], batch["x"])
