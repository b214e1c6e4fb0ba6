"""Every family against what transformers computes, from fixtures that hold no weights.

The fixtures are made by tests/parity/make_families_golden.py; the weights follow from a seed.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egad_jax import lazy_arrays
from egad_jax.errors import InputError
from egad_jax.models import family, layout
from egad_jax.models.generation import generate
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import make_model
from tests.parity.family_cases import (
  CASES,
  FIXTURES,
  head,
  prompts,
  rows_of,
  weights,
  write_model,
)

TOLERANCE = 1e-4
EVERY = [(name, index) for name in sorted(CASES) for index in range(3)]


@functools.cache
def loaded(name, index):
  """(fixture's entries, its config.json, its weights by name, the model as it is read)."""
  with np.load(FIXTURES / f"{name}.npz") as file:
    stored = {key: file[f"{index}/{key}"] for key in ("config", "shapes", "logits", "greedy")}
  data, shapes = json.loads(str(stored["config"])), json.loads(str(stored["shapes"]))
  arrays = weights(name, shapes, index)
  with tempfile.TemporaryDirectory() as directory:
    read = load_pretrained(str(write_model(Path(directory), data, arrays)))
    read = read._replace(params=lazy_arrays.read_all(read.params))
  return stored, data, arrays, read


def test_there_is_a_fixture_for_every_family():
  assert sorted(CASES) == sorted(family.families())
  assert sorted(CASES) == sorted(path.stem for path in FIXTURES.glob("*.npz"))


@pytest.mark.short_form(12)
@pytest.mark.parametrize(("name", "index"), EVERY)
def test_logits_equal_those_of_transformers_packed_and_alone(name, index):
  stored, _, _, read = loaded(name, index)
  assert read.config.family == name
  assert read.unread == ()
  model = make_model(read.config)
  texts = prompts(read.config.vocab_size)
  run = jax.jit(lambda p, *rows: head(model, p, model.apply(p, *rows)[0]))
  got = np.asarray(run(read.params, *rows_of(texts)))
  total = sum(map(len, texts))
  np.testing.assert_allclose(got[0, :total], stored["logits"], atol=TOLERANCE, rtol=0)
  alone = np.concatenate([got[1 + i, : len(text)] for i, text in enumerate(texts)])
  np.testing.assert_allclose(alone, stored["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "index"), EVERY)
def test_export_inverts_import_bit_for_bit(name, index):
  _, data, arrays, read = loaded(name, index)
  written = layout.by_name(family.tensors(read.config), read.params)
  assert written.keys() == arrays.keys()
  for key, array in written.items():
    np.testing.assert_array_equal(array, arrays[key], err_msg=key)
  config = family.config_to_hf(read.config, bos_id=None, eos_id=None, pad_id=None, dtype="float32")
  assert family.config_from_hf("config.json", config) == read.config
  assert config["architectures"] == data["architectures"]


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_parameters_are_those_of_the_decoder(name):
  read = loaded(name, 1)[3]
  shapes = jax.eval_shape(make_model(read.config).init, jax.random.key(0))
  jax.tree.map(assert_shape, read.params, shapes)


def assert_shape(ours, wanted):
  assert ours.shape == wanted.shape


@pytest.mark.short_form(2)
@pytest.mark.parametrize(("name", "index"), sorted(EVERY, key=lambda e: (e[0] != "gpt2", e[1])))
def test_greedy_continuations_with_a_cache_equal_those_of_transformers(name, index):
  """All prompts in one batch; they are padded on the right."""
  stored, _, _, read = loaded(name, index)
  texts = prompts(read.config.vocab_size)
  new = generate(make_model(read.config), read.params, texts, max_new_tokens=6, temperature=0.0)
  np.testing.assert_array_equal(new, stored["greedy"])


@pytest.mark.short_form(1)
@pytest.mark.parametrize(("name", "index"), sorted(EVERY, key=lambda e: (e[0] != "gpt2", e[1])))
def test_padding_on_the_left_changes_no_logits(name, index):
  stored, _, _, read = loaded(name, index)
  model, texts = make_model(read.config), prompts(read.config.vocab_size)
  width = max(map(len, texts)) + 2
  rows = np.zeros((2, len(texts), width), np.int32)
  rows[1] = -1
  for i, text in enumerate(texts):
    rows[0, i, width - len(text) :] = text
    rows[1, i, width - len(text) :] = np.arange(len(text))

  @jax.jit
  def run(params, tokens, positions):
    # In two calls, so that the second one reads keys of the first.
    cache = model.init_cache(len(texts), width)
    first, cache = model.decode(params, tokens[:, :8], positions[:, :8], cache)
    second, _ = model.decode(params, tokens[:, 8:], positions[:, 8:], cache)
    return head(model, params, jnp.concatenate([first, second], 1))

  got = np.asarray(run(read.params, *rows))
  ours = np.concatenate([got[i, width - len(text) :] for i, text in enumerate(texts)])
  np.testing.assert_allclose(ours, stored["logits"], atol=TOLERANCE, rtol=0)


def test_the_published_gpt2_has_names_without_a_prefix_and_masks(tmp_path):
  _, data, arrays, read = loaded("gpt2", 0)
  bare = {key.removeprefix("transformer."): array for key, array in arrays.items()}
  masks = {f"h.{i}.attn.bias": np.tri(8, dtype=np.float32)[None, None] for i in range(2)}
  again = load_pretrained(str(write_model(tmp_path, data, bare | masks)))
  assert again.config == read.config
  jax.tree.map(np.testing.assert_array_equal, again.params, read.params)


def test_a_missing_expert_is_named(tmp_path):
  _, data, arrays, _ = loaded("qwen3_moe", 0)
  name = "model.layers.1.mlp.experts.3.up_proj.weight"
  lacking = {key: array for key, array in arrays.items() if key != name}
  with pytest.raises(InputError, match=f"lacks tensors: {name}"):
    load_pretrained(str(write_model(tmp_path, data, lacking)))
  with pytest.raises(InputError, match="too few for the 100000 experts of each of 2 layers"):
    load_pretrained(str(write_model(tmp_path, data | {"num_local_experts": 100_000}, arrays)))


def test_a_fused_projection_of_another_width_is_named(tmp_path):
  _, data, arrays, _ = loaded("phi3", 2)
  name = "model.layers.0.self_attn.qkv_proj.weight"
  wrong = arrays | {name: arrays[name][:-1]}
  with pytest.raises(InputError, match=rf"{name} must have shape \[48, 24\].*got \[47, 24\]"):
    load_pretrained(str(write_model(tmp_path, data, wrong)))
