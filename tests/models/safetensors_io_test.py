"""Tests of reading Hugging Face directories, whole and in shards."""

from __future__ import annotations

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from egad_jax import lazy_arrays
from egad_jax.errors import InputError
from egad_jax.models import family, layout
from egad_jax.models.safetensors_io import INDEX, SINGLE, read_directory
from tests.models.safetensors_files import write_safetensors

DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def directory(tmp_path, config, params):
  """A Hugging Face directory with one safetensors file."""
  data = family.config_to_hf(config, bos_id=1, eos_id=2, pad_id=2, dtype="float32")
  (tmp_path / "config.json").write_text(json.dumps(data))
  write_safetensors(tmp_path / SINGLE, layout.by_name(family.tensors(config), params))
  return tmp_path


def rewrite(directory, config, params, changes):
  arrays = layout.by_name(family.tensors(config), params) | changes
  write_safetensors(directory / SINGLE, {name: a for name, a in arrays.items() if a is not None})


def shard(directory, config, params):
  """Turns the directory into one with two shards and their index."""
  arrays = layout.by_name(family.tensors(config), params)
  (directory / SINGLE).unlink()
  names = sorted(arrays)
  weight_map = {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f"model-{i + 1:05d}-of-00002.safetensors"
    write_safetensors(directory / file, {name: arrays[name] for name in part})
    weight_map |= dict.fromkeys(part, file)
  (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  return weight_map


def test_reads_what_was_written(directory, config, params):
  model = read_directory(directory)
  read = model.params
  assert model.config == config
  assert model.unread == ()
  jax.tree.map(np.testing.assert_array_equal, read, params)


def test_shards_equal_the_whole(directory, config, params):
  shard(directory, config, params)
  jax.tree.map(np.testing.assert_array_equal, read_directory(directory).params, params)


def test_bfloat16_is_rounded_and_read_as_float32(directory, config, params):
  arrays = layout.by_name(family.tensors(config), params)
  write_safetensors(directory / SINGLE, arrays, dtype="bfloat16")
  read = read_directory(directory).params
  rounded = params["embedding"].astype(ml_dtypes.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(read["embedding"], rounded)
  assert read["embedding"].dtype == np.float32


def test_untied_has_a_head_of_its_own(tmp_path, config, params):
  config = dataclasses.replace(config, tie_embeddings=False)
  params = params | {"unembedding": params["embedding"] + 1}
  data = family.config_to_hf(config, bos_id=1, eos_id=2, pad_id=2, dtype="float32")
  (tmp_path / "config.json").write_text(json.dumps(data))
  write_safetensors(tmp_path / SINGLE, layout.by_name(family.tensors(config), params))
  jax.tree.map(np.testing.assert_array_equal, read_directory(tmp_path).params, params)


def test_tied_copy_of_the_table_is_accepted_if_it_is_one(directory, config, params):
  rewrite(directory, config, params, {"lm_head.weight": params["embedding"]})
  jax.tree.map(np.testing.assert_array_equal, read_directory(directory).params, params)
  rewrite(directory, config, params, {"lm_head.weight": params["embedding"] + 1})
  with pytest.raises(InputError, match=r"lm_head\.weight must equal model\.embed_tokens\.weight"):
    read_directory(directory)


def test_tied_table_under_the_name_of_the_head(directory, config, params):
  table = "model.embed_tokens.weight"
  rewrite(directory, config, params, {"lm_head.weight": params["embedding"], table: None})
  jax.tree.map(np.testing.assert_array_equal, read_directory(directory).params, params)
  rewrite(directory, config, params, {table: None})
  with pytest.raises(InputError, match=f"lacks tensors: {table}"):
    read_directory(directory)


@pytest.mark.parametrize("flag", [False, None, "absent"])
def test_untied_needs_both_tables(directory, config, params, flag):
  path = directory / "config.json"
  data = json.loads(path.read_text()) | {"tie_word_embeddings": flag}
  path.write_text(json.dumps({k: v for k, v in data.items() if v != "absent"}))
  with pytest.raises(
    InputError, match=r"lacks tensors: lm_head\.weight.*set tie_word_embeddings to"
  ):
    read_directory(directory)
  head = params["embedding"] + 1
  rewrite(directory, config, params, {"lm_head.weight": head})
  read = read_directory(directory)
  np.testing.assert_array_equal(read.params["unembedding"], head)
  np.testing.assert_array_equal(read.params["embedding"], params["embedding"])
  rewrite(directory, config, params, {"lm_head.weight": head, "model.embed_tokens.weight": None})
  with pytest.raises(InputError, match=r"lacks tensors: model\.embed_tokens\.weight"):
    read_directory(directory)


@pytest.mark.parametrize(
  "name",
  [
    "model.layers.1.self_attn.rotary_emb.inv_freq",
    "model.rotary_emb.inv_freq",
    "model.rotary_emb.original_inv_freq",
    "model.layers.0.self_attn.rotary_emb.cos_cached",
    "model.layers.0.self_attn.rotary_emb.sin_cached",
    "rotary_emb.inv_freq",
    "model.embeddings.position_ids",
  ],
)
def test_derived_buffers_are_passed_over(directory, config, params, name):
  rewrite(directory, config, params, {name: np.ones(2, np.float32)})
  read = read_directory(directory)
  jax.tree.map(np.testing.assert_array_equal, read.params, params)
  assert read.unread == ()


@pytest.mark.parametrize(
  ("rename", "message"),
  [
    (lambda n: n.removeprefix("model."), "saved from the model without its head"),
    (lambda n: f"language_model.{n}", r"names begin with 'language_model\.'.*by itself"),
    (lambda n: f"_orig_mod.{n}", r"names begin with '_orig_mod\.'"),
    (lambda n: f"base_model.model.{n}", r"names begin with 'base_model\.model\.'"),
    (lambda n: n.replace("down_proj.weight", "down_proj.qweight"), "read from GGUF only"),
    (lambda n: n.replace("down_proj", "down_proj.lora_A"), "a LoRA adapter's; merge it"),
    (lambda n: n.replace("down_proj", "w2"), "Use the files that belong to this config"),
  ],
)
def test_other_names_come_with_help(directory, config, params, rename, message):
  arrays = {
    rename(name): array for name, array in layout.by_name(family.tensors(config), params).items()
  }
  write_safetensors(directory / SINGLE, arrays)
  with pytest.raises(InputError, match=f"lacks tensors: .*{message}"):
    read_directory(directory)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({DOWN: None}, f"lacks tensors: {DOWN}"),
    ({"model.norm.bias": np.ones(24)}, "has unexpected tensors: model.norm.bias"),
    ({DOWN: np.ones((32, 24))}, rf"{DOWN} must have shape \[24, 32\].*got \[32, 24\]"),
  ],
)
def test_wrong_tensors_are_named(directory, config, params, changes, message):
  rewrite(directory, config, params, changes)
  with pytest.raises(InputError, match=message):
    read_directory(directory)


def test_integers_are_refused(directory, config, params):
  arrays = layout.by_name(family.tensors(config), params)
  arrays[DOWN] = arrays[DOWN].astype(np.int8)
  safetensors.numpy.save_file(arrays, directory / SINGLE)
  with pytest.raises(InputError, match=f"{DOWN} must be float32.*got I8"):
    read_directory(directory)
  arrays[DOWN] = np.zeros((24, 32), ml_dtypes.float8_e4m3fn)
  safetensors.numpy.save_file(arrays, directory / SINGLE)
  with pytest.raises(InputError, match=rf"{DOWN} must be .*float64; got F8_E4M3\. .* GGUF file"):
    read_directory(directory)


def test_float64_and_float16_are_read_as_float32(directory, config, params):
  arrays = layout.by_name(family.tensors(config), params)
  arrays[DOWN] = arrays[DOWN].astype(np.float64) + 1e-12
  table = "model.embed_tokens.weight"
  safetensors.numpy.save_file(
    arrays | {table: arrays[table].astype(np.float16)}, directory / SINGLE
  )
  read = read_directory(directory).params
  np.testing.assert_array_equal(
    read["layers"]["block_0"]["mlp"]["down"][0].T, arrays[DOWN].astype("f4")
  )
  np.testing.assert_array_equal(read["embedding"], params["embedding"].astype("f2").astype("f4"))


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.999])
def test_truncated_files_are_refused(directory, kept):
  path = directory / SINGLE
  whole = path.read_bytes()
  size = int(kept * len(whole)) if isinstance(kept, float) else kept
  path.write_bytes(whole[:size])
  with pytest.raises(InputError, match=rf"\({size} bytes\) is not a whole safetensors file"):
    read_directory(directory)


def test_missing_files_are_named(directory, config, params):
  weight_map = shard(directory, config, params)
  (directory / weight_map[DOWN]).unlink()
  with pytest.raises(InputError, match=f"{weight_map[DOWN]}: no such file, though the index"):
    read_directory(directory)
  (directory / INDEX).unlink()
  with pytest.raises(InputError, match=f"expected {SINGLE} or {INDEX}; it has neither"):
    read_directory(directory)
  (directory / "config.json").unlink()
  with pytest.raises(InputError, match=r"config\.json: no such file"):
    read_directory(directory)


def test_index_that_disagrees_with_its_shards(directory, config, params):
  weight_map = shard(directory, config, params)
  file = weight_map.pop(DOWN)
  (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
  with pytest.raises(InputError, match=f"{file} has unexpected tensors: {DOWN}"):
    read_directory(directory)
  (other,) = set(weight_map.values()) - {file}
  (directory / INDEX).write_text(json.dumps({"weight_map": weight_map | {DOWN: other}}))
  with pytest.raises(InputError, match=rf"{INDEX} says that {DOWN} is in {other}, which lacks it"):
    read_directory(directory)


def test_the_index_decides_between_two_copies(directory, config, params):
  arrays = layout.by_name(family.tensors(config), params)
  weight_map = shard(directory, config, params)
  right = weight_map[DOWN]
  (other,) = set(weight_map.values()) - {right}
  # The other shard, read last or first, has a stale copy.
  part = {name: arrays[name] for name, file in weight_map.items() if file == other}
  write_safetensors(directory / other, part | {DOWN: arrays[DOWN] + 1})
  read = read_directory(directory)
  jax.tree.map(np.testing.assert_array_equal, read.params, params)
  assert read.unread == (f"{other}: the tensors {DOWN}, which the index takes from elsewhere",)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tensor_map": {}}, "has keys that are not known: tensor_map. Copy the index"),
    ({"weight_map": None}, "expected a weight_map"),
    ({"weight_map": [DOWN]}, "expected a weight_map"),
    ({"metadata": "x"}, "metadata must be an object; got 'x'"),
    ({"weight_map": {}}, "lacks tensors"),
  ],
)
def test_an_index_that_is_none(directory, config, params, change, message):
  weight_map = shard(directory, config, params)
  (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map} | change))
  with pytest.raises(InputError, match=message):
    read_directory(directory)


def test_an_index_that_names_a_tensor_twice(directory, config, params):
  weight_map = shard(directory, config, params)
  text = json.dumps({"weight_map": weight_map})
  again = f'"{DOWN}": "{weight_map[DOWN]}"'
  (directory / INDEX).write_text(text.replace("}}", f", {again}}}}}"))
  with pytest.raises(InputError, match=f"the key '{DOWN}' is there twice"):
    read_directory(directory)


def test_what_is_beside_the_model_is_named(directory, config, params):
  weight_map = shard(directory, config, params)
  metadata = {"total_size": 1, "of_tomorrow": 2}
  (directory / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
  for name in ("consolidated.safetensors", "pytorch_model.bin"):
    (directory / name).write_bytes(b"x")
  path = directory / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"of_today": []}))
  assert read_directory(directory).unread == (
    "config.json: of_today",
    "the file consolidated.safetensors",
    "the file pytorch_model.bin",
    f"{INDEX}: metadata.of_tomorrow",
  )


@pytest.mark.parametrize(
  ("text", "message"), [("{", "is not valid JSON"), ("[]", "expected a JSON object; got list")]
)
def test_broken_config(directory, text, message):
  (directory / "config.json").write_text(text)
  with pytest.raises(InputError, match=message):
    read_directory(directory)


@pytest.mark.parametrize(
  "file",
  [
    "../model.safetensors",
    "/etc/passwd",
    "..",
    "",
    "a/b.safetensors",
    "a" * 300,
    "a\\b.safetensors",
    "a\0.safetensors",
    "tokenizer.json",
    3,
    None,
  ],
)
def test_an_index_names_nothing_outside_its_directory(directory, config, params, file):
  weight_map = shard(directory, config, params)
  text = json.dumps({"weight_map": weight_map | {DOWN: file}})
  (directory / INDEX).write_text(text)
  with pytest.raises(InputError, match="weight_map from tensor names to"):
    read_directory(directory)


def test_links_into_a_cache_are_followed(directory, config, params):
  # Hugging Face's cache: snapshots/REVISION holds links into blobs.
  (directory / "blobs").mkdir()
  for i, name in enumerate(("config.json", SINGLE)):
    (directory / name).rename(directory / "blobs" / str(i))
    (directory / name).symlink_to(f"blobs/{i}")
  jax.tree.map(np.testing.assert_array_equal, read_directory(directory).params, params)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(directory, config, params, value):
  arrays = layout.by_name(family.tensors(config), params)
  arrays[DOWN][-1, -1] = value
  write_safetensors(directory / SINGLE, arrays)
  with pytest.raises(InputError, match=f"{DOWN} must hold finite float32"):
    lazy_arrays.read_all(read_directory(directory).params)


def test_a_claim_of_endless_layers_takes_no_time(directory):
  path = directory / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 2**31 - 1}))
  with pytest.raises(InputError, match="too few for the 2147483647 layers"):
    read_directory(directory)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff{}"])
def test_json_that_python_cannot_read_is_refused(directory, content):
  (directory / "config.json").write_bytes(content)
  with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
    read_directory(directory)
