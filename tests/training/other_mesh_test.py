"""A state that was saved on one mesh goes on with the same losses on others."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from etils import epath

from egad_jax import build, sharding
from egad_jax.data.batches import shift
from egad_jax.training import checkpoints
from tests.build.configs import changed

SAVED_AT, STEPS, ROWS, SEQ = 2, 3, 8, 64
CONFIG = {
  "accumulation": 1,
  "compilation_cache": "",
  "compiler_options": "xla_backend_optimization_level=0,xla_llvm_disable_expensive_passes=True",
}


def run_on(devices, **axes):
  """The run of the tiny config, its step compiled and its teacher placed."""
  values = {f"mesh__{name}": size for name, size in axes.items()}
  run = build.plan_run(changed(**CONFIG, **values), jax.devices()[:devices])
  return run, run.lower_step().compile(), run.place_teacher()


def batch_of(step):
  rng = np.random.default_rng(step)
  tokens = rng.integers(0, 512, (ROWS, SEQ + 1), dtype=np.int32)
  positions = np.broadcast_to(np.arange(SEQ + 1, dtype=np.int32), tokens.shape)
  return shift(tokens, np.ones_like(tokens), positions, np.ones_like(tokens))


def go_on(run, program, teacher, state, steps):
  """The state after some steps and their losses."""
  losses = []
  for step in steps:
    state, metrics = program(state, teacher, sharding.place_batch(batch_of(step), run.mesh))
    total, count = jax.device_get(metrics["loss"])
    losses.append(total / count)
  return state, losses


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """The workdir of a run on 8 devices, and its losses after the checkpoint."""
  workdir = epath.Path(tmp_path_factory.mktemp("run"))
  run, *compiled = run_on(8)
  state, _ = go_on(run, *compiled, run.place_student(), range(SAVED_AT))
  manager = checkpoints.Checkpoints(workdir / "checkpoints")
  manager.save(SAVED_AT, state, {"tokens": 0})
  manager.close()
  return workdir, go_on(run, *compiled, state, range(SAVED_AT, SAVED_AT + STEPS))[1]


@pytest.mark.parametrize(
  ("devices", "axes"),
  [(4, {}), (2, {}), (1, {}), (8, {"data": 2, "fsdp": 2, "tensor": 2})],
)
def test_it_goes_on_with_the_same_losses(saved, devices, axes):
  workdir, wanted = saved
  run, *compiled = run_on(devices, **axes)
  step, state = checkpoints.restore_state(workdir, None, run.abstract_state())
  assert step == SAVED_AT
  assert {x.sharding.mesh for x in jax.tree.leaves(state)} == {run.mesh}
  _, losses = go_on(run, *compiled, state, range(SAVED_AT, SAVED_AT + STEPS))
  np.testing.assert_allclose(losses, wanted, rtol=1e-5)
  assert losses[0] != losses[-1]
