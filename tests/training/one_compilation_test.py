"""A whole run compiles each of its programs once, whatever its step, progress or batch is."""

from __future__ import annotations

import collections
import json

import jax
import numpy as np
import pytest

from configs import tiny
from egad_jax import from_config
from egad_jax.durability.workdir import Workdir
from egad_jax.training import loop

# Every program of a run is compiled, for two devices.
pytestmark = pytest.mark.slow

_COMPILED = "/jax/core/compile/backend_compile_duration"
STEPS, EVALUATE, ACCUMULATION = 6, 2, 2


def _config(texts):
  config = tiny.get_config()
  config.steps, config.batch_size, config.accumulation = STEPS, 8, ACCUMULATION
  config.data.source, config.data.cache = str(texts), str(texts.parent / "data")
  config.data.held_out_fraction, config.data.tokenizer = 0.2, "train:270"
  config.student.remat = "none"
  # A program from the cache would not count as compiled.
  config.compilation_cache = ""
  config.checkpoint.every_steps, config.eval.every_steps = 3, EVALUATE
  config.eval.sample_tokens, config.trackers = 0, ()
  return config


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  directory = tmp_path_factory.mktemp("run") / "texts"
  directory.mkdir()
  for i in range(40):
    (directory / f"{i}.txt").write_text(f"Document {i} says that {i} and {i} make {2 * i}. " * 4)
  return directory


def _train(texts, directory):
  """Trains and returns how often each program was compiled, the logged lines and evaluations."""
  times: dict[str, int] = collections.Counter()

  def listen(event, _, *, fun_name="", **__):
    if event == _COMPILED:
      times[fun_name.removeprefix("jit(").removesuffix(")")] += 1

  config = _config(texts)
  made = from_config.build(config, directory, devices=jax.devices()[:2])
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    with Workdir(directory) as workdir:
      workdir.store_config({})
      loop.train(made, from_config.loop_options(config), workdir)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  read = lambda name: [json.loads(line) for line in (directory / name).read_text().splitlines()]
  return times, read("metrics.jsonl"), read("evaluations.jsonl")


@pytest.fixture(scope="module")
def whole(texts, tmp_path_factory):
  return _train(texts, tmp_path_factory.mktemp("workdir"))


def test_each_program_of_a_run_is_compiled_once(whole):
  times, lines, _ = whole
  assert len(lines) == STEPS
  programs = ("init_state", "fill", "train_step", "sums", "statistics")
  assert {name: times[name] for name in programs} == dict.fromkeys(programs, 1)


def test_the_one_program_follows_the_curriculum(whole):
  """A progress or step that is a constant of the program would need no second compilation."""
  _, lines, _ = whole
  phi = [line["curriculum_progress"] for line in lines]
  np.testing.assert_allclose(phi, np.linspace(0.25, 0.75, STEPS), atol=1e-6)
  assert (phi[0], phi[-1]) == (0.25, 0.75)


def test_the_learning_rate_begins_and_ends_as_the_config_says(whole):
  """Peak 0.003 after 2 steps of warm-up, a tenth of it at the last step."""
  rates = np.array([line["learning_rate"] for line in whole[1]], np.float32)
  assert (rates[[0, 1, -1]] == np.float32([0.0015, 0.003, 0.0003])).all()
  assert (np.diff(rates[1:]) < 0).all()


def test_an_evaluation_has_the_curriculum_of_its_step(whole):
  _, lines, evaluations = whole
  phi = {line["step"]: line["curriculum_progress"] for line in lines}
  found = {line["step"]: line["curriculum_progress"] for line in evaluations}
  expected = {0: phi[1], 2: phi[2], 4: phi[4], 6: phi[6]}
  assert found == pytest.approx(expected, abs=1e-6)
