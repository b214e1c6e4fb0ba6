"""A run that is only compiled: from the architectures alone, and the same program as a run's."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from configs import quickstart
from egad_jax import from_config
from egad_jax.data.batches import PairedBatch
from egad_jax.errors import InputError
from egad_jax.models.architectures import ARCHITECTURES, architecture
from egad_jax.training.programs import lower_train_step
from tests.from_config.configs import changed


def planned(**values):
  return from_config.plan_run(changed(**values), jax.devices()[:4])


@pytest.mark.slow
def test_it_lowers_the_program_that_a_run_compiles(small, tmp_path):
  devices = jax.devices()[:4]
  run = from_config.build(small(), tmp_path, devices=devices)
  plan = from_config.plan_run(small(), devices)
  assert plan.abstract_state() == run.abstract_state()
  assert lower_train_step(plan).as_text() == lower_train_step(run).as_text()


def test_nothing_is_read():
  config = {
    "teacher__source": "no/teacher",
    "teacher__architecture": "qwen3-8b",
    "student__init": "source",
    "student__source": "no/student",
    "student__architecture": "qwen3-0.6b",
    "data__source": "no/data",
    "data__tokenizer": "",
  }
  run = planned(**config)
  assert run.models.teacher.config == architecture("qwen3-8b")
  assert run.models.student.config == architecture("qwen3-0.6b")
  assert run.tokenizers.student.vocab_size == 151_936
  assert (run.models.student_params, run.models.teacher_params) == (None, None)


def test_layers_of_a_teacher_that_is_not_there():
  config = quickstart.get_config()
  config.teacher.architecture = "smollm2-135m"
  run = from_config.plan_run(config, jax.devices()[:4])
  assert run.models.student.config.num_layers == 13
  assert run.models.student.config.dim == run.models.teacher.config.dim == 576


def test_a_random_student_of_another_architecture():
  sizes = dict.fromkeys((f"student__{n}" for n in ("dim", "num_heads", "num_kv_heads")), 0)
  run = planned(student__architecture="smollm2-135m", student__mlp_dim=0, **sizes)
  student = run.models.student.config
  # Two layers and the tokenizer's 512 entries, as the config says; the rest is the architecture's.
  assert (student.num_layers, student.vocab_size) == (2, 512)
  assert (student.dim, student.head_dim, student.mlp_dim) == (576, 64, 1536)


def test_two_tokenizers_have_two_vocabularies_and_paired_rows():
  run = planned(method="x_token", student__tokenizer="train:384")
  assert (run.tokenizers.student.vocab_size, run.tokenizers.teacher.vocab_size) == (384, 512)
  assert run.models.student.config.vocab_size == 384
  assert run.models.teacher.config.vocab_size == 512
  assert isinstance(run.abstract_batch(), PairedBatch)


def test_a_student_that_is_read_brings_its_own_vocabulary():
  source = {"student__init": "source", "student__source": "no/student"}
  run = planned(method="x_token", student__architecture="smollm2-135m", **source)
  assert (run.tokenizers.student.vocab_size, run.tokenizers.teacher.vocab_size) == (49_152, 512)


@pytest.mark.slow
def test_the_paired_program_is_a_run_s_but_for_the_projection(small, tmp_path):
  config = {"method": "x_token", "data__tokenizer": "train:270", "student__tokenizer": "train:264"}
  devices = jax.devices()[:4]
  run = from_config.build(small(**config), tmp_path, devices=devices)
  plan = from_config.plan_run(small(**config), devices)
  assert plan.abstract_state() == run.abstract_state()
  assert plan.abstract_batch() == run.abstract_batch()
  assert lower_train_step(plan).in_tree == lower_train_step(run).in_tree


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"teacher__source": "a/b"}, r"teacher\.architecture must name what .*teacher\.source=a/b has"),
    (
      {"student__init": "source", "student__source": "a/b"},
      r"config\.student\.architecture must name what config\.student\.source=a/b has",
    ),
    ({"teacher__source": "a", "teacher__architecture": "b"}, r'unknown architecture "b"'),
    ({"student__init": "layers"}, r"random:tiny has random values; use student\.init=random"),
    (
      {"method": "x_token", "method_options__x_token__kind": "h_kl"},
      r"config\.method_options\.x_token\.kind=h_kl cannot be planned",
    ),
    (
      {"method": "x_token", "student__tokenizer": "some/directory"},
      r"config\.student\.tokenizer=some/directory is not read by a plan; .*train:N",
    ),
    ({"mesh__data": 3}, r"the mesh must use all 4 devices"),
    ({"batch_size": 6}, r"must divide config\.batch_size / accumulation \(6\)"),
  ],
)
def test_what_cannot_be_planned(values, message):
  with pytest.raises(InputError, match=message):
    planned(**values)


def test_a_source_must_have_the_architecture_that_was_planned(small, tmp_path, monkeypatch):
  from egad_jax.from_config import models
  from egad_jax.models.load import Pretrained

  shape = architecture("smollm2-360m")
  monkeypatch.setattr(models, "load_pretrained", lambda *a, **k: Pretrained(shape, {}, None, "x"))
  config = small(teacher__source="x", teacher__architecture="smollm2-135m")
  with pytest.raises(
    InputError, match=r"teacher\.architecture is smollm2-135m, of dim 576, but x has 960; name"
  ):
    from_config.build(config, tmp_path)


def test_a_student_that_cannot_be_exported_is_refused_before_training(small, tmp_path, monkeypatch):
  odd = dataclasses.replace(architecture("tiny"), logit_soft_cap=30.0)
  monkeypatch.setitem(ARCHITECTURES, "odd", odd)
  sizes = {f"student__{n}": 0 for n in ("dim", "num_heads", "num_kv_heads", "mlp_dim")}
  with pytest.raises(InputError, match="Llama family cannot be exported with logit_soft_"):
    from_config.build(small(student__architecture="odd", **sizes), tmp_path)
