"""The presets: each names public models, is planned, and reads weights of the published configs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from egad_jax import from_config
from egad_jax.files import hub
from egad_jax.models import family
from egad_jax.models.architectures import architecture
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import make_model
from tests.models.safetensors_files import write_safetensors

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The config.json of each model as its owner published it.
PUBLISHED = json.loads((ROOT / "tests/fixtures/published_configs.json").read_text("utf-8"))
PRESETS = [path.stem for path in sorted((ROOT / "configs").glob("*.py")) if "_to_" in path.stem]
PRESETS += ["smollm2_gpu"]
# Sizes by which a model becomes small; heads, norms, biases and positions stay as they are.
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config_of(name):
  return importlib.import_module(f"configs.{name}").get_config()


def models_of(name):
  """(hub name, architecture) of the teacher and of the student."""
  config = config_of(name)
  assert config.student.init == "source"
  for options in (config.teacher, config.student):
    assert hub.is_on_hub(options.source)
    yield hub.name_of(options.source), options.architecture


@pytest.mark.parametrize("name", PRESETS)
def test_published_configs_are_the_architectures_that_a_plan_takes(name):
  for model, wanted in models_of(name):
    found = family.config_from_hf(model, PUBLISHED[model])
    std = found.embedding_std
    assert found == dataclasses.replace(architecture(wanted), embedding_std=std)


@pytest.mark.short_form(2)
@pytest.mark.parametrize("name", PRESETS)
def test_a_plan_reads_nothing(name, monkeypatch):
  monkeypatch.setattr(hub, "snapshot", lambda *_, **__: pytest.fail("a plan downloads"))
  config = config_of(name)
  experiment = from_config.plan_run(config, jax.devices())
  state = experiment.abstract_state()
  shape = state.trainable["student"]["embedding"].shape
  assert shape == (architecture(config.student.architecture).vocab_size, shape[1])
  assert experiment.models.teacher_params is None


@pytest.mark.parametrize("model", sorted(PUBLISHED))
def test_random_weights_of_the_published_config_are_read(tmp_path, monkeypatch, model):
  """In the cache of the Hub, at a small width and depth, under the names that the model has."""
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  root = tmp_path / f"models--{model.replace('/', '--')}"
  snapshot = root / "snapshots" / COMMIT
  snapshot.mkdir(parents=True)
  (root / "refs").mkdir()
  (root / "refs" / "main").write_text(COMMIT)
  data = PUBLISHED[model] | SMALL | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
  data = {"head_dim": PUBLISHED[model]["hidden_size"] // data["num_attention_heads"]} | data
  (snapshot / "config.json").write_text(json.dumps(data))
  tensors = family.tensors(family.config_from_hf("config.json", data))
  random = np.random.default_rng(0)
  arrays = {t.hf: random.standard_normal(t.shape).astype(np.float32) for t in tensors}
  write_safetensors(snapshot / "model.safetensors", arrays, dtype="bfloat16")
  read = load_pretrained(f"hf:{model}")
  assert (read.name, read.unread) == (model, ())
  shapes = jax.eval_shape(make_model(read.config).init, jax.random.key(0))
  assert jax.tree.map(lambda x: x.shape, read.params) == jax.tree.map(lambda x: x.shape, shapes)
  query = arrays["model.layers.1.self_attn.q_proj.weight"]
  got = read.params["layers"]["block_0"]["attention"]["query"][1]
  np.testing.assert_allclose(got.reshape(16, -1).T, query, rtol=2**-8)


def test_every_model_of_a_preset_has_its_config_here():
  named = {model for name in PRESETS for model, _ in models_of(name)}
  assert named == set(PUBLISHED)
