"""Tests of the Llama family: its tensors, and reading and writing config.json."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from egad_jax.errors import InputError
from egad_jax.models import family, layout
from egad_jax.models.architectures import ARCHITECTURES, architecture
from egad_jax.models.config import LayerKind
from egad_jax.models.model import make_model


def test_tensor_table_covers_every_parameter_once(config):
  config = dataclasses.replace(
    config, num_layers=4, pattern=(LayerKind(), LayerKind(window=2)), tie_embeddings=False
  )
  shapes = jax.eval_shape(make_model(config).init, jax.random.key(0))
  table = family.tensors(config)
  assert len({t.hf for t in table}) == len({t.gguf for t in table}) == len(table)
  sizes = sum(int(np.prod(t.shape)) for t in table)
  assert sizes == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_assemble_inverts_take_apart(config, params):
  arrays = layout.by_name(family.tensors(config), params)
  again = layout.assemble(family.tensors(config), lambda tensor, slices: arrays[tensor.hf][slices])
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_layout_of_matrices(config, params):
  arrays = layout.by_name(family.tensors(config), params)
  layer = params["layers"]["block_0"]
  assert arrays["model.layers.2.self_attn.k_proj.weight"].shape == (12, 24)
  # Row 5 of k_proj is component 1 of key head 1.
  np.testing.assert_array_equal(
    arrays["model.layers.2.self_attn.k_proj.weight"][5], layer["attention"]["key"][2][:, 1, 1]
  )
  np.testing.assert_array_equal(
    arrays["model.layers.0.self_attn.o_proj.weight"][:, 5], layer["attention"]["output"][0][1, 1]
  )
  np.testing.assert_array_equal(
    arrays["model.layers.1.mlp.down_proj.weight"], layer["mlp"]["down"][1].T
  )


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_config_survives_the_round_trip(name):
  config = architecture(name)
  data = family.config_to_hf(config, bos_id=1, eos_id=2, pad_id=None, dtype="bfloat16")
  assert family.config_from_hf("config.json", data) == config
  wanted = "Qwen3ForCausalLM" if name.startswith("qwen3") else "LlamaForCausalLM"
  if config.experts is not None:
    wanted = "Qwen3MoeForCausalLM"
  assert data["architectures"] == [wanted]
  assert (data["bos_token_id"], data["eos_token_id"], data["torch_dtype"]) == (1, 2, "bfloat16")


def hf(config, **changes):
  data = family.config_to_hf(config, bos_id=1, eos_id=2, pad_id=2, dtype="float32") | changes
  return {key: value for key, value in data.items() if value != "absent"}


def test_rope_parameters_of_newer_transformers(config):
  rope = {
    "rope_type": "llama3",
    "rope_theta": 7.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
  }
  read = family.config_from_hf(
    "config.json", hf(config, rope_theta="absent", rope_scaling="absent", rope_parameters=rope)
  )
  assert read.rope_theta == 7.0
  assert read.rope_scaling.original_max_seq_len == 16


def test_absent_keys_take_their_defaults(config):
  data = hf(config, head_dim="absent", num_key_value_heads="absent", tie_word_embeddings="absent")
  read = family.config_from_hf("config.json", data)
  assert (read.head_dim, read.num_kv_heads, read.tie_embeddings) == (4, 6, False)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model_type": "mamba"}, "model_type must be one of .*llama.*; got 'mamba'"),
    ({"qkv_bias": True}, "qkv_bias must be False; got True"),
    ({"hidden_act": "gelu"}, "hidden_act must be 'silu'; got 'gelu'"),
    ({"quantization_config": {"bits": 4}}, "quantization_config must be absent.*use its GGUF file"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "llama3.*got 'yarn'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "needs factor, low_freq_factor"),
    ({"hidden_size": "absent"}, "hidden_size must be a positive integer; got None"),
    ({"vocab_size": "many"}, "vocab_size must be a positive integer; got 'many'"),
    ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer; got 0"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers must be a positive integer; got 2.5"),
    (
      {"initializer_range": "wide"},
      "initializer_range must be a positive number below 1e38; got 'wide'",
    ),
    ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number below 1e38; got None"),
    ({"rms_norm_eps": True}, "rms_norm_eps must be a positive number"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number"),
    ({"vocab_size": 2**31}, "vocab_size must be a positive integer; got 2147483648"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false; got 'false'"),
    ({"rope_scaling": "llama3"}, "rope scaling must be an object; got 'llama3'"),
    ({"rope_theta": "10000"}, "rope_theta must be a positive number"),
    ({"rope_theta": 10**400}, "rope_theta must be a positive number"),
    ({"num_key_value_heads": 4}, r"num_heads \(6\) must be a multiple"),
  ],
)
def test_what_cannot_be_represented_is_refused(config, changes, message):
  with pytest.raises(InputError, match=f"config.json: .*{message}"):
    family.config_from_hf("config.json", hf(config, **changes))


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"logit_soft_cap": 30.0}, "logit_soft_cap 30.0"),
    ({"pattern": (LayerKind(window=4),)}, r"pattern \(LayerKind\(window=4"),
    ({"qk_norm": True}, "qk_norm True"),
    ({"qkv_bias": True}, "qkv_bias True"),
  ],
)
def test_what_the_family_cannot_express_is_not_exported(config, changes, named):
  config = dataclasses.replace(config, **changes)
  message = f"of the Llama family cannot be exported with {named}"
  with pytest.raises(InputError, match=message):
    family.config_to_hf(config, bos_id=1, eos_id=2, pad_id=2, dtype="float32")
