"""Tests of what is done with each key of the files that describe a model."""

from __future__ import annotations

import pytest

from egad_jax.errors import InputError
from egad_jax.models import family, generation_settings, safetensors_io
from tests.models import tiny_llama

# What transformers 4.40 and 5.23 write for a plain Llama: `LlamaConfig().to_dict()`, cut to what is
# not in the tiny model's config already.
TRANSFORMERS_4 = {
  "_name_or_path": "/models/x",
  "add_cross_attention": False,
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bad_words_ids": None,
  "begin_suppress_tokens": None,
  "chunk_size_feed_forward": 0,
  "cross_attention_hidden_size": None,
  "decoder_start_token_id": None,
  "diversity_penalty": 0.0,
  "do_sample": False,
  "early_stopping": False,
  "encoder_no_repeat_ngram_size": 0,
  "exponential_decay_length_penalty": None,
  "finetuning_task": None,
  "forced_bos_token_id": None,
  "forced_eos_token_id": None,
  "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
  "initializer_range": 0.02,
  "is_decoder": False,
  "is_encoder_decoder": False,
  "label2id": {"LABEL_0": 0, "LABEL_1": 1},
  "length_penalty": 1.0,
  "max_length": 20,
  "min_length": 0,
  "no_repeat_ngram_size": 0,
  "num_beam_groups": 1,
  "num_beams": 1,
  "num_return_sequences": 1,
  "output_attentions": False,
  "output_hidden_states": False,
  "output_scores": False,
  "pad_token_id": None,
  "prefix": None,
  "pretraining_tp": 1,
  "problem_type": None,
  "pruned_heads": {},
  "remove_invalid_values": False,
  "repetition_penalty": 1.0,
  "return_dict": True,
  "return_dict_in_generate": False,
  "rope_scaling": None,
  "sep_token_id": None,
  "suppress_tokens": None,
  "task_specific_params": None,
  "temperature": 1.0,
  "tf_legacy_loss": False,
  "tie_encoder_decoder": False,
  "tokenizer_class": None,
  "top_k": 50,
  "top_p": 1.0,
  "torchscript": False,
  "transformers_version": "4.40.0",
  "typical_p": 1.0,
  "use_bfloat16": False,
  "use_cache": True,
}
TRANSFORMERS_5 = {
  "transformers_version": "5.23.0",
  "output_hidden_states": False,
  "return_dict": True,
  "dtype": "bfloat16",
  "chunk_size_feed_forward": 0,
  "is_encoder_decoder": False,
  "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
  "label2id": {"LABEL_0": 0, "LABEL_1": 1},
  "problem_type": None,
  "use_cache": True,
  "pretraining_tp": 1,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
  "attention_bias": False,
  "attention_dropout": 0.0,
  "mlp_bias": False,
  "_name_or_path": "",
  "output_attentions": False,
}
# SmolLM2's own config.json has these.
SMOLLM2 = {
  "is_llama_config": True,
  "rope_interleaved": False,
  "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
}


def config(**changes):
  return tiny_llama.CONFIG | changes


@pytest.mark.parametrize("written", [TRANSFORMERS_4, TRANSFORMERS_5, SMOLLM2])
def test_what_other_programs_write_by_default_is_not_worth_a_word(written):
  wanted = family.config_from_hf("config.json", config())
  assert family.config_from_hf("config.json", config(**written)) == wanted
  assert family.unread_keys(config(**written)) == []


def test_keys_of_tomorrow_that_ask_for_nothing_are_named_unless_they_are_null():
  written = config(of_tomorrow=False, mtp_heads={}, _private=3, not_set=None)
  family.config_from_hf("config.json", written)
  assert family.unread_keys(written) == ["of_tomorrow", "mtp_heads", "_private"]


@pytest.mark.parametrize("value", [2, True, "relu2", [1], {"a": 1}, 0])
def test_keys_of_tomorrow_that_may_change_the_model_are_refused(value):
  with pytest.raises(
    InputError, match=r"has keys that are not known: of_tomorrow\. .*remove them from the file"
  ):
    family.config_from_hf("config.json", config(of_tomorrow=value))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"architectures": ["LlamaForSequenceClassification"]}, "architectures must be .*got .*Sequen"),
    ({"architectures": ["LlamaModel"]}, "which has another head or other layers. Save the model"),
    ({"architectures": "LlamaForCausalLM"}, r"architectures must be \['LlamaForCausalLM'\]"),
    ({"architectures": ["LlamaForCausalLM", 5]}, "architectures must be"),
    ({"model_type": "mamba"}, "one of .*llama.*; got 'mamba'. Other families are not supported"),
    ({"model_type": ["llama"]}, "model_type must be"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map names a program .*remove"),
    ({"auto_map": "x"}, "auto_map names a program"),
    ({"hidden_act": "gelu_new"}, "hidden_act must be 'silu'; got 'gelu_new'. That is another comp"),
    ({"attention_bias": "false"}, "attention_bias must be true or false; got 'false'"),
    ({"mlp_bias": 1}, "mlp_bias must be true or false; got 1"),
    ({"pretraining_tp": 2}, "pretraining_tp must be 1; got 2"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1; got 0.5"),
    ({"rope_interleaved": True}, "rope_interleaved must be False; got True"),
    ({"no_rope_layers": [1, 0]}, r"no_rope_layers must be absent; got \[1, 0\]"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be absent; got 50.0"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping must be absent"),
    ({"logit_scale": 0.0625}, "logit_scale must be 1; got 0.0625"),
    ({"logits_scaling": 8}, "logits_scaling must be 1; got 8"),
    ({"residual_multiplier": 0.22}, "residual_multiplier must be 1; got 0.22"),
    ({"embedding_multiplier": 12.0}, "embedding_multiplier must be 1; got 12.0"),
    ({"num_local_experts": 8}, "num_local_experts must be 0; got 8"),
    ({"quantization_config": {"bits": 4}}, "quantization_config must be absent.*use its GGUF file"),
    ({"compression_config": {"format": "x"}}, "compression_config must be absent.*GGUF"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder must be False"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads must be absent; got"),
    ({"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config must be absent"),
    ({"vision_config": {"x": 1}}, "vision_config must be absent"),
    ({"text_config": {"x": 1}}, "Models of images and text are not read"),
    ({"sliding_window": 64}, "sliding_window must be absent or reach over all positions; got 64"),
    ({"sliding_window": "all"}, "sliding_window must be absent"),
    ({"sliding_window": 64, "use_sliding_window": True}, "sliding_window must be absent"),
    ({"use_sliding_window": True}, "use_sliding_window must be false"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must all be 'full_att"),
    ({"layer_types": "full_attention"}, "layer_types must all be"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false; got 1"),
    ({"vocab_size": [260]}, r"vocab_size must be a positive integer; got \[260\]"),
    (
      {"hidden_size": "x" * 10**5},
      r"hidden_size must be a positive integer; got 'x{79} \[\.\.\.\]",
    ),
    (
      {"attention_bias": list(range(10**5))},
      r"attention_bias must be true or false; got \[0, 1.* \[\.\.\.\]",
    ),
  ],
)
def test_what_would_be_another_model_is_refused_by_name(changes, message):
  with pytest.raises(InputError, match=rf"config\.json: .*{message}") as raised:
    family.config_from_hf("config.json", config(**changes))
  assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
  "changes",
  [
    {"architectures": None},
    {"architectures": []},
    {"architectures": ["LLaMAForCausalLM"]},
    {"auto_map": {"AutoTokenizer": ["x.X", None]}},
    {"hidden_act": "swish"},
    {"attention_bias": None},
    {"attention_dropout": 0.1},
    {"sliding_window": 512},
    {"sliding_window": 64, "use_sliding_window": False},
    {"layer_types": ["full_attention"] * 2},
    {"tie_word_embeddings": None},
    {"num_local_experts": 0},
    {"rms_norm_eps": 1e-6, "logits_scaling": 1.0},
  ],
)
def test_other_spellings_of_the_same_model(changes):
  wanted = family.config_from_hf("config.json", config())
  assert family.config_from_hf("config.json", config(**changes)) == wanted


def test_absent_epsilon_is_transformers_default():
  written = {key: value for key, value in config().items() if key != "rms_norm_eps"}
  assert family.config_from_hf("config.json", written).norm_eps == 1e-6


def test_no_key_is_in_two_parts_of_a_table():
  tables = {
    "generation_config.json": generation_settings.GENERATION_CONFIG,
    "index": safetensors_io.SAFETENSORS_INDEX,
  }
  for name, found in family.families().items():
    tables[name] = found.keys
    if found.gguf is not None:
      tables[f"{name} in GGUF"] = found.gguf.keys
  for name, table in tables.items():
    parts = (table.read, table.harmless, set(table.neutral))
    assert len(frozenset().union(*parts)) == sum(map(len, parts)), name
