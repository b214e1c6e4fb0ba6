"""A teacher that gives its likeliest tokens alone trains a student, on one device as on eight."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from egad_jax import from_config
from egad_jax.errors import InputError
from egad_jax.from_config import Extensions
from egad_jax.losses import top_k_teacher
from egad_jax.training.compiled_run import CompiledRun
from examples.extending import teacher_source
from examples.extending import top_k_teacher as example
from tests.from_config.configs import changed
from tests.teachers.separate_test import FAST_COMPILE

STEPS = 4


def without_entropy(config, models, meshes):
  return dataclasses.replace(example.make_teacher(config, models, meshes), entropy=False)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
  """A function that makes the tiny config's experiment with a teacher that gives a `TopK`."""
  directory = tmp_path_factory.mktemp("run")
  texts = directory / "texts"
  texts.mkdir()
  for i in range(40):
    (texts / f"{i}.txt").write_text(f"Document {i} says that {i} and {i} make {2 * i}. " * 4)
  base = {
    "data__source": str(texts),
    "data__cache": str(directory / "data"),
    "data__held_out_fraction": 0.2,
    "data__tokenizer": "train:270",
    "compilation_cache": "",
    "compiler_options": FAST_COMPILE,
    "branch__weight": 0.0,
    "eval__rows": 8,
    "eval__sample_tokens": 0,
    "distribution__fill_batches": 0,
    "student__remat": "none",
    "student__layers": 1,
    "seq_len": 32,
  }

  def experiment(devices=1, make_teacher=without_entropy, **values):
    return from_config.build(
      changed(**base | values),
      directory,
      devices=jax.devices()[:devices],
      extensions=Extensions(teacher=make_teacher),
    )

  return experiment


def trained(run):
  """The metrics of some steps, and the evaluations before and after them."""
  state, found = run.experiment.first_state(), []
  before = run.evaluate(state)
  step, batches = run.compile(state), run.train_batches(0, run.experiment.first_state)
  for batch in itertools.islice(batches, STEPS):
    state, metrics = step(state, run.frozen, batch)
    found.append({k: total / max(n, 1) for k, (total, n) in jax.device_get(metrics).items()})
  return found, before, run.evaluate(state)


@pytest.fixture(scope="module")
def single(build):
  return trained(CompiledRun(build(1)))


@pytest.mark.slow
def test_the_student_learns_and_the_entropy_has_its_bounds(single):
  metrics, before, after = single
  assert after["student"]["forward_kl"] < before["student"]["forward_kl"]
  for step in metrics:
    assert step["skipped"] == 0
    assert 0 < step["teacher_entropy_low"] < step["teacher_entropy"]
    assert step["teacher_entropy"] == pytest.approx(float(step["teacher_entropy_high"]), rel=1e-5)
  teacher = after["teacher"]
  assert 0 < teacher["entropy_low"] < teacher["entropy"]
  assert teacher["entropy"] == pytest.approx(teacher["entropy_high"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"mesh__fsdp": 8}, {"mesh__fsdp": 4, "mesh__tensor": 2}])
def test_eight_devices_equal_one(build, single, mesh):
  metrics, *evaluations = trained(CompiledRun(build(8, **mesh)))
  names = ("loss", "teacher_entropy", "teacher_entropy_low", "teacher_entropy_high", "grad_norm")
  for found, expected in zip(metrics, single[0], strict=True):
    for name in names:
      assert found[name] == pytest.approx(float(expected[name]), rel=5e-5), name
  for found, expected in zip(evaluations, single[1:], strict=True):
    assert found["tokens"] == expected["tokens"]
    assert found["teacher"] == pytest.approx(expected["teacher"], rel=1e-5, abs=1e-6)
    assert found["student"] == pytest.approx(expected["student"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_the_example_keeps_what_it_says(build):
  experiment = build(1, example.make_teacher)
  teacher = experiment.teacher
  frozen = teacher.place().params
  batch = experiment.abstract_batch()
  tokens = np.arange(np.prod(batch.tokens.shape), dtype=np.int32).reshape(batch.tokens.shape) % 270
  batch = batch._replace(tokens=tokens, positions=tokens * 0, segment_ids=tokens * 0 + 1)
  outputs, hidden = jax.jit(
    lambda frozen, batch: (teacher.outputs(frozen, batch), teacher.own.outputs(frozen, batch))
  )(frozen, batch._replace(row_numbers=None, attached=()))
  expected = top_k_teacher(hidden.hidden @ hidden.unembedding.T, 20)
  np.testing.assert_array_equal(outputs.ids, expected.ids)
  np.testing.assert_allclose(outputs.log_probs, expected.log_probs, rtol=1e-5)
  assert outputs.entropy is not None


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"branch__weight": 1.0}, r"config\.method \(egad\) has a feature loss.*branch\.weight=0"),
    ({"method": "trg"}, r"config\.method \(trg\) has a feature loss.*gives only a TopK"),
    ({"method": "x_token"}, r"config\.method \(x_token\) serves two tokenizers"),
  ],
)
def test_a_method_that_reads_more_is_refused(build, values, message):
  with pytest.raises(InputError, match=message):
    build(**values)


def test_a_teacher_without_the_layers_is_refused(build):
  message = r"feature loss, which reads the outputs of 1 of .* gives those of 0\..*weight=0"
  with pytest.raises(InputError, match=message):
    build(1, teacher_source.make_teacher, branch__weight=1.0)
