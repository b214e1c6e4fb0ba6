"""Tests of reading GGUF files, written here by the gguf package."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from egad_jax import lazy_arrays
from egad_jax.errors import InputError
from egad_jax.models import family, rotary
from egad_jax.models.config import LinearRopeScaling, Llama3RopeScaling
from egad_jax.models.families.llama import unpermute
from egad_jax.models.gguf_import import read_gguf
from egad_jax.models.license import License
from tests.models import tiny_llama


def test_reads_what_was_written(tmp_path, config, params, write_gguf):
  model = read_gguf(write_gguf(tmp_path / "a.gguf", params))
  assert model.config == config
  assert model.license == License("mit")
  jax.tree.map(np.testing.assert_array_equal, model.params, params)
  assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype(np.float32)}


def test_unpermute_pairs_halves():
  # One head of width 4: the file holds components 0, 2, 1, 3 in this order.
  stored = np.array([[0.0], [2.0], [1.0], [3.0]])
  np.testing.assert_array_equal(unpermute(stored, 1)[:, 0], [0, 1, 2, 3])


def test_output_tensor_means_untied(tmp_path, params, write_gguf):
  head = np.full((40, 24), 0.5, np.float32)
  model = read_gguf(write_gguf(tmp_path / "a.gguf", params, tensors={"output.weight": head}))
  assert not model.config.tie_embeddings
  np.testing.assert_array_equal(model.params["unembedding"], head)


@pytest.mark.parametrize(
  ("tensors", "message"),
  [
    ({"blk.1.attn_q.weight": None}, "lacks tensors: blk.1.attn_q.weight"),
    ({"token_embd.weight": None}, "lacks tensors: token_embd.weight"),
    (
      {"blk.1.attn_q.bias": np.zeros(24, np.float32)},
      "has unexpected tensors: blk.1.attn_q.bias",
    ),
    (
      {"blk.0.ffn_up.weight": np.zeros((33, 24), np.float32)},
      r"blk.0.ffn_up.weight must have shape \[32, 24\].*got \[33, 24\]",
    ),
    ({"rope_freqs.weight": np.ones(2, np.float32) * [3, 1]}, "Llama 3's rope scaling"),
  ],
)
def test_wrong_tensors_are_named(tmp_path, params, write_gguf, tensors, message):
  tensors = {k: v if v is None else np.asarray(v, np.float32) for k, v in tensors.items()}
  path = write_gguf(tmp_path / "a.gguf", params, tensors=tensors)
  with pytest.raises(InputError, match=f"a.gguf.*{message}"):
    read_gguf(path)


@pytest.mark.parametrize(
  ("metadata", "message"),
  [
    (
      {"llama.rope.scaling.type": "yarn"},
      "llama.rope.scaling.type must be 'none' or 'linear'; got 'yarn'",
    ),
    ({"llama.rope.dimension_count": 2}, "llama.rope.dimension_count must be 4; got 2"),
    ({"llama.expert_count": 8}, "llama.expert_count must be 0; got 8"),
    ({"llama.block_count": None}, "expected the metadata key llama.block_count"),
    ({"llama.block_count": 4}, "lacks tensors: blk.3"),
    ({"llama.attention.head_count": 0}, "llama.attention.head_count must be a positive integer"),
    ({"llama.feed_forward_length": "big"}, "llama.feed_forward_length .* integer; got 'big'"),
    ({"llama.of_tomorrow": 1}, "a.gguf has keys that are not known: llama.of_tomorrow"),
    (
      {"llama.attention.sliding_window": 4096},
      "llama.attention.sliding_window must be 0; got 4096",
    ),
    ({"llama.logit_scale": 0.5}, "llama.logit_scale must be 0; got 0.5"),
    ({"llama.attention.scale": 0.1}, "llama.attention.scale must be 0; got 0.1"),
    ({"llama.rope.scaling.attn_factor": 0.5}, "llama.rope.scaling.attn_factor must be 1"),
    ({"llama.rope.freq_base": "10000"}, "llama.rope.freq_base must be a positive number"),
    ({"llama.vocab_size": 39}, "llama.vocab_size must be 40; got 39"),
    ({"llama.attention.key_length": 8}, r"attn_q.weight must have shape \[48, 24\]"),
    ({"llama.attention.value_length": 8}, "llama.attention.value_length must be 4; got 8"),
    ({"general.type": "adapter"}, "general.type must be 'model'; got 'adapter'.*Merge it into"),
    ({"general.type": "mmproj"}, "general.type must be 'model'"),
    ({"split.count": 3}, r"one of 3 parts \(split.count\).*end in -00001-of-00003.gguf.*--merge"),
    ({"tokenizer.ggml.eot_token_id": 40}, "eot_token_id.*must be one or more ids from 0 to 39"),
    ({"tokenizer.ggml.eos_token_id": "</s>"}, "must be one or more ids from 0 to 39; got '</s>'"),
    ({"llama.attention.head_count_kv": 4}, r"a.gguf: num_heads \(6\) must be a multiple"),
  ],
)
def test_metadata_that_cannot_be_represented(tmp_path, params, write_gguf, metadata, message):
  path = write_gguf(tmp_path / "a.gguf", params, metadata=metadata)
  with pytest.raises(InputError, match=message):
    read_gguf(path)


def test_other_architectures_are_refused(tmp_path, params, write_gguf):
  path = write_gguf(tmp_path / "a.gguf", params, architecture="mamba")
  with pytest.raises(InputError, match=r"general\.architecture must be one of .*; got 'mamba'"):
    read_gguf(path)


@pytest.mark.parametrize(
  "metadata",
  [
    {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 8.0},
    {"llama.rope.scaling.factor": 8.0},
    {"llama.rope.scale_linear": 8.0},
  ],
)
def test_linear_scaling(tmp_path, config, params, write_gguf, metadata):
  read = read_gguf(write_gguf(tmp_path / "a.gguf", params, metadata=metadata))
  assert read.config == dataclasses.replace(config, rope_scaling=LinearRopeScaling(8.0))


def test_llama3_scaling_is_recognised_by_its_factors(tmp_path, params, write_gguf):
  scaling = Llama3RopeScaling(factor=32.0)
  # A base at which the slowest wavelength is longer than the original context.
  plain = rotary.frequencies(4, theta=1e9).astype(np.float64)
  factors = rotary.scaling_factors(plain, scaling).astype(np.float32)
  path = write_gguf(
    tmp_path / "a.gguf",
    params,
    tensors={"rope_freqs.weight": factors},
    metadata={"llama.rope.freq_base": 1e9},
  )
  assert read_gguf(path).config.rope_scaling == scaling


@pytest.mark.parametrize("kept", [0, 3, 40, 400, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, params, write_gguf, kept):
  whole = write_gguf(tmp_path / "a.gguf", params).read_bytes()
  size = int(kept * len(whole)) if isinstance(kept, float) else kept
  path = tmp_path / "b.gguf"
  path.write_bytes(whole[:size])
  with pytest.raises(InputError, match=rf"b.gguf \({size} bytes\) is not a whole GGUF file"):
    read_gguf(path)


def test_missing_and_foreign_files_are_refused(tmp_path):
  with pytest.raises(InputError, match=r"[Nn]o such"):
    read_gguf(tmp_path / "a.gguf")
  (tmp_path / "b.gguf").write_bytes(b"PK\x03\x04" * 100)
  with pytest.raises(InputError, match="not a whole GGUF file"):
    read_gguf(tmp_path / "b.gguf")


def test_table_and_writer_agree_on_names(config):
  assert len(family.tensors(config)) == 2 + 9 * config.num_layers


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, params, write_gguf, value):
  up = np.zeros((32, 24), np.float32)
  up[-1, -1] = value
  path = write_gguf(tmp_path / "a.gguf", params, tensors={"blk.0.ffn_up.weight": up})
  with pytest.raises(InputError, match=r"a\.gguf: tensor blk.0.ffn_up.weight must hold finite"):
    lazy_arrays.read_all(read_gguf(path).params)


def test_a_claim_of_endless_layers_takes_no_time(tmp_path, params, write_gguf):
  path = write_gguf(tmp_path / "a.gguf", params, metadata={"llama.block_count": 2**31 - 1})
  with pytest.raises(InputError, match="too few for the 2147483647 layers"):
    read_gguf(path)


@pytest.mark.parametrize(
  "metadata",
  [
    {"llama.expert_count": 0, "llama.expert_used_count": 0, "llama.logit_scale": 0.0},
    {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
    {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
    {"llama.vocab_size": 40, "llama.attention.key_length": 4, "split.count": 1},
    {"llama.tensor_data_layout": "Meta AI original pth", "general.type": "model"},
    {"general.quantization_version": 2, "quantize.imatrix.file": "x"},
  ],
)
def test_other_spellings_of_the_same_model(tmp_path, config, params, write_gguf, metadata):
  read = read_gguf(write_gguf(tmp_path / "a.gguf", params, metadata=metadata))
  assert (read.config, read.unread) == (config, ())


def test_keys_outside_the_architecture_are_named(tmp_path, params, write_gguf):
  path = write_gguf(tmp_path / "a.gguf", params, metadata={"clip.of_tomorrow": 1, "mine": "x"})
  assert read_gguf(path).unread == ("clip.of_tomorrow", "mine")


def test_numbers_for_each_layer_are_refused(tmp_path):
  metadata = {"llama.attention.head_count_kv": [2, 1]}
  path = tiny_llama.make_gguf(tmp_path / "a.gguf", metadata=metadata)
  with pytest.raises(InputError, match=r"head_count_kv must be a positive integer; got .*\[2, 1\]"):
    read_gguf(path)


@pytest.mark.parametrize(
  "key",
  [
    "general.type",
    "split.count",
    "llama.rope.scaling.type",
    "llama.rope.scaling.factor",
    "tokenizer.ggml.eot_token_id",
    "llama.logit_scale",
    "llama.context_length",
    "llama.vocab_size",
  ],
)
@pytest.mark.parametrize("value", [[1, 2], ["none", "model"]])
def test_a_list_in_place_of_a_value(tmp_path, key, value):
  path = tiny_llama.make_gguf(tmp_path / "a.gguf", metadata={key: value})
  with pytest.raises(InputError, match=key):
    read_gguf(path)


@pytest.mark.parametrize(
  ("metadata", "ends"),
  [
    # <|end_of_text|> is 0 and <|eot_id|> is 2: llama.cpp ends at these texts too.
    ({}, (0, 2)),
    ({"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 9}, (0, 7, 9, 2)),
    ({"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 5}, (5, 0, 2)),
    ({"tokenizer.ggml.eos_token_id": None}, ()),
  ],
)
def test_end_tokens(tmp_path, metadata, ends):
  assert read_gguf(tiny_llama.make_gguf(tmp_path / "a.gguf", metadata=metadata)).end_ids == ends
