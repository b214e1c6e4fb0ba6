"""Tests of the Hugging Face export; transformers itself reads it in tests/parity."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import ml_dtypes
import numpy as np
import pytest

from egad_jax import device_arrays, sharding
from egad_jax.errors import InputError
from egad_jax.models import safetensors_shards
from egad_jax.models.config import Llama3RopeScaling
from egad_jax.models.export import export_student
from egad_jax.models.generation_settings import GenerationSettings
from egad_jax.models.license import License
from egad_jax.models.load import load_pretrained
from egad_jax.models.model import make_model

CARD = "---\nlicense: apache-2.0\n---\n# A student\n"


class FakeTokenizer(types.SimpleNamespace):
  """Special ids and one file."""

  def save(self, directory):
    if self.broken:
      raise OSError("No space left on device")
    (directory / "tokenizer.json").write_text("{}")


def tokenizer(**changes):
  values = {"vocab_size": 40, "bos_id": 1, "eos_id": 2, "document_end_id": 2, "pad_id": None}
  return FakeTokenizer(**values | {"broken": False} | changes)


def test_export_is_read_back(tmp_path, config, params):
  path = export_student(tmp_path / "a" / "export", config, params, tokenizer(), model_card=CARD)
  assert sorted(p.name for p in path.iterdir()) == [
    "README.md",
    "config.json",
    "egad_jax.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
  ]
  read = load_pretrained(str(path))
  assert (read.config, read.license, read.name) == (config, License("apache-2.0"), "export")
  jax.tree.map(np.testing.assert_array_equal, read.params, params)
  generation = json.loads((path / "generation_config.json").read_text())
  assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
  assert [p.name for p in (tmp_path / "a").iterdir()] == ["export"]


@pytest.mark.parametrize("tied", [True, False])
def test_rows_beyond_the_tokenizer_are_not_exported(tmp_path, config, params, tied):
  config = dataclasses.replace(config, tie_embeddings=tied)
  if not tied:
    params = params | {"unembedding": params["embedding"] + 1}
  path = export_student(tmp_path / "a", config, params, tokenizer(vocab_size=37), model_card=CARD)
  read = load_pretrained(str(path), tokenizer_size=37)
  assert read.config == dataclasses.replace(config, vocab_size=37)
  tables = {"embedding", "unembedding"} & params.keys()
  wanted = params | {name: params[name][:37] for name in tables}
  jax.tree.map(np.testing.assert_array_equal, read.params, wanted)
  with pytest.raises(ValueError, match="a tokenizer of 41 ids cannot go with 40 rows"):
    export_student(tmp_path / "b", config, params, tokenizer(vocab_size=41), model_card=CARD)
  assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
  ("stated", "document_end", "wanted"),
  [((), 2, 2), ((), 5, [2, 5]), ((7,), 7, 7), ((7, 3), 5, [7, 3, 5]), ((5, 3), 5, [5, 3])],
)
def test_texts_end_as_the_teachers_do(tmp_path, config, params, stated, document_end, wanted):
  sampling = {"do_sample": True, "temperature": 0.6}
  path = export_student(
    tmp_path / "a",
    config,
    params,
    tokenizer(document_end_id=document_end),
    model_card=CARD,
    generation=GenerationSettings(stated, sampling),
  )
  settings = json.loads((path / "generation_config.json").read_text())
  assert settings == {"bos_token_id": 1, "eos_token_id": wanted, "pad_token_id": None} | sampling
  assert json.loads((path / "config.json").read_text())["eos_token_id"] == wanted
  read = load_pretrained(str(path)).generation
  assert (list(read.end_ids), read.sampling) == (list(np.atleast_1d(wanted)), sampling)


def test_what_the_program_depends_on_is_exported(tmp_path, config, params):
  scaling = Llama3RopeScaling(factor=4.0, low_freq_factor=1.5, original_max_seq_len=32)
  config = dataclasses.replace(config, rope_scaling=scaling, norm_eps=3e-6, rope_theta=777.0)
  path = export_student(tmp_path / "a", config, params, tokenizer(), model_card=CARD)
  read = load_pretrained(str(path))
  assert (read.config, read.unread) == (config, ())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_two_byte_values_halve_the_file_and_are_read_back(tmp_path, config, params, dtype):
  export_student(tmp_path / "a", config, params, tokenizer(), model_card=CARD)
  export_student(tmp_path / "b", config, params, tokenizer(), model_card=CARD, dtype=dtype)
  a, b = ((tmp_path / name / "model.safetensors").stat().st_size for name in "ab")
  assert b < 0.6 * a
  assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == dtype
  whole, rounded = (load_pretrained(str(tmp_path / name)).params for name in "ab")
  wanted = np.asarray(whole["layers"]["block_0"]["mlp"]["up"]).astype(dtype)
  got = np.asarray(rounded["layers"]["block_0"]["mlp"]["up"])
  np.testing.assert_array_equal(got, wanted.astype(got.dtype))


def test_float16_does_not_replace_an_export_by_one_out_of_its_range(tmp_path, config, params):
  target = tmp_path / "a"
  export_student(target, config, params, tokenizer(), model_card=CARD)
  before = (target / "model.safetensors").read_bytes()
  params = params | {"embedding": params["embedding"] + 1e5}
  with pytest.raises(InputError, match=r"model\.embed_tokens\.weight .*dtype=bfloat16"):
    export_student(target, config, params, tokenizer(), model_card=CARD, dtype="float16")
  assert (target / "model.safetensors").read_bytes() == before


def test_replaces_an_older_export_whole_and_nothing_else(tmp_path, config, params):
  target = tmp_path / "export"
  for card in ("old", CARD):
    export_student(target, config, params, tokenizer(), model_card=card)
  assert (target / "README.md").read_text() == CARD
  (target / "notes").write_text("x")
  with pytest.raises(InputError, match=r"--output .*export is replaced only.*holds notes"):
    export_student(target, config, params, tokenizer(), model_card="", what="--output")
  assert (target / "notes").exists()
  assert [p.name for p in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("before", [True, False])
def test_failure_leaves_what_was_there(tmp_path, config, params, before):
  target = tmp_path / "export"
  if before:
    export_student(target, config, params, tokenizer(), model_card=CARD)
  with pytest.raises(OSError, match="No space"):
    export_student(target, config, params, tokenizer(broken=True), model_card="other")
  assert [p.name for p in tmp_path.iterdir()] == (["export"] if before else [])
  assert not before or (target / "README.md").read_text() == CARD


def test_unknown_dtype_is_refused_before_anything_is_written(tmp_path, config, params):
  with pytest.raises(InputError, match="dtype must be one of"):
    export_student(tmp_path / "a", config, params, tokenizer(), model_card=CARD, dtype="fp8")
  assert not list(tmp_path.iterdir())


def test_export_to_an_object_store_holds_the_same_bytes(tmp_path, bucket, config, params):
  local = export_student(tmp_path / "export", config, params, tokenizer(), model_card=CARD)
  remote = export_student(bucket / "export", config, params, tokenizer(), model_card=CARD)
  read = lambda path: {p.name: p.read_bytes() for p in path.iterdir()}
  assert read(remote) == read(local)


@pytest.mark.short_form(1)
@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_shards_from_a_mesh_are_the_model(tmp_path, monkeypatch, config, params, sizes):
  monkeypatch.setattr(safetensors_shards, "MOST_BYTES", 10_000)
  mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1) | sizes)
  axes = make_model(config).logical_axes()
  placed = device_arrays.put(params, sharding.parameter_shardings(mesh, axes, params))
  held = []

  def fetch(array, at):
    values = device_arrays.get(array, at, np.asarray)
    held.append(values.nbytes)
    return values

  path = export_student(
    tmp_path / "a", config, placed, tokenizer(), model_card=CARD, dtype="bfloat16", fetch=fetch
  )
  shards = sorted(p.name for p in path.glob("*.safetensors"))
  assert len(shards) == 3
  assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
  # One layer's matrix at a time, never all layers'.
  assert max(held) == max(params["embedding"].nbytes, config.dim * config.mlp_dim * 4)
  read = load_pretrained(str(path))
  assert read.unread == ()
  rounded = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, read.params, rounded)
  # The processes that do not write gather the same arrays in the same order.
  first, held = held, []
  export_student(
    tmp_path / "b", config, placed, tokenizer(), model_card="", fetch=fetch, writes=False
  )
  assert held == first
  assert not (tmp_path / "b").exists()
