"""Tables of the keys of each kind of file that describes a model; see `foreign_keys.Table`."""

from __future__ import annotations

from egad_jax.models.foreign_keys import Table

# Keys of PretrainedConfig in transformers 4 and 5, and keys that other tools add.
_ANY_MODEL = frozenset(
  {
    *("_name_or_path", "_commit_hash", "_attn_implementation", "_attn_implementation_autoset"),
    *("_attn_implementation_internal", "_experts_implementation", "attn_implementation"),
    *("_rope_scaling_validation", "transformers_version", "torch_dtype", "dtype", "use_cache"),
    *("return_dict", "output_hidden_states", "output_attentions", "output_scores", "torchscript"),
    *("return_dict_in_generate", "use_bfloat16", "tf_legacy_loss", "finetuning_task"),
    *("id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),
    *("tokenizer_class", "prefix", "bos_token_id", "pad_token_id", "sep_token_id"),
    *("decoder_start_token_id", "is_decoder", "chunk_size_feed_forward", "use_return_dict"),
    *("keys_to_ignore_at_inference", "gradient_checkpointing", "tie_last_hidden_states"),
    *("unsloth_version", "unsloth_fixed", "unsloth_free", "transformers.js_config"),
    *("is_llama_config", "license", "max_sequence_length", "neftune_noise_alpha"),
    # Dropouts act in training only.
    *("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout"),
  }
)

LLAMA_CONFIG = Table(
  read=frozenset(
    {
      *("model_type", "architectures", "auto_map", "vocab_size", "hidden_size"),
      *("intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
      *("head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
      *("tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters"),
      *("original_max_position_embeddings", "eos_token_id", "layer_types", "sliding_window"),
      *("use_sliding_window",),
    }
  ),
  harmless=_ANY_MODEL,
  neutral={
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "activation_function": ("silu", "swish"),
    "attention_bias": (False,),
    "attention_out_bias": (False,),
    "attention_in_bias": (False,),
    "qkv_bias": (False,),
    "o_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "use_bias": (False,),
    "bias": (False,),
    "pretraining_tp": (1,),
    "partial_rotary_factor": (1,),
    "rotary_pct": (1,),
    "rotary_dim": (),
    "rope_interleaved": (False,),
    "rope_traditional": (False,),
    "rope_scaling_factor": (1,),
    "rotary_scaling_factor": (1,),
    "use_rope": (True,),
    "no_rope_layers": (),
    "no_rope_layer_interval": (0,),
    "position_embedding_type": ("rope", "rotary"),
    "alibi": (False,),
    "use_alibi": (False,),
    "qk_norm": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (),
    "attn_scale": (),
    "attn_temperature_tuning": (False,),
    "attention_chunk_size": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "scale_embedding": (False,),
    "dim_model_base": (),
    "layer_norm_type": ("rms_norm", "rmsnorm"),
    "norm_type": ("rms_norm", "rmsnorm"),
    "clip_qkv": (),
    "parallel_residual": (False,),
    "use_parallel_residual": (False,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "num_experts_per_tok": (0, 1),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "pruned_heads": (),
    "per_layer_config": (),
    "quantization_config": (),
    "compression_config": (),
    "text_config": (),
    "vision_config": (),
    "audio_config": (),
  },
  remedy=(
    "That is another computation than the plain Llama that is run here, and the model would not be "
    "itself; use one without it."
  ),
  hints={
    "quantization_config": "Quantized weights are read from GGUF only; use its GGUF file.",
    "compression_config": "Quantized weights are read from GGUF only; use its GGUF file.",
    "text_config": "Models of images and text are not read; use one of text alone.",
  },
)

# Sampling settings, which the export passes on. They do not affect the model's distribution.
SAMPLING = (
  "do_sample",
  "temperature",
  "top_k",
  "top_p",
  "min_p",
  "typical_p",
  "repetition_penalty",
)
GENERATION_CONFIG = Table(
  read=frozenset({"eos_token_id", *SAMPLING}),
  harmless=frozenset(
    {
      *("_from_model_config", "_commit_hash", "transformers_version", "bos_token_id"),
      *("pad_token_id", "decoder_start_token_id", "use_cache", "cache_implementation"),
      *("cache_config", "max_cache_len", "return_dict_in_generate", "output_scores"),
      *("output_logits", "output_attentions", "output_hidden_states", "renormalize_logits"),
      *("max_length", "max_new_tokens", "max_time", "num_return_sequences", "low_memory"),
      *("compile_config", "disable_compile", "prefill_chunk_size", "continuous_batching_config"),
      # Settings of speculative decoding, which gives the same text.
      *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "use_mtp"),
      *("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
      *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
      *("assistant_ensemble_weight", "speculation_type", "trust_remote_code"),
    }
  ),
  # Settings that lead to other texts than sampling does; they are named and not passed on.
  neutral={
    "min_length": (0,),
    "min_new_tokens": (0,),
    "early_stopping": (False,),
    "stop_strings": (),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": (),
    "force_words_ids": (),
    "constraints": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "sequence_bias": (),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
  },
)
# Keys of generation that transformers 4 also had in config.json.
LEGACY_GENERATION = frozenset(
  (GENERATION_CONFIG.harmless | GENERATION_CONFIG.neutral.keys() | set(SAMPLING)) - _ANY_MODEL
)

SAFETENSORS_INDEX = Table(read=frozenset({"weight_map"}), harmless=frozenset({"metadata"}))

# Metadata of the index, where programs that made it leave notes for people.
INDEX_METADATA = Table(
  read=frozenset(),
  harmless=frozenset({"total_size", "total_parameters", "format", "mergekit_version"}),
)

LLAMA_GGUF = Table(
  read=frozenset(
    {
      *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
      *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
      *("attention.value_length", "attention.layer_norm_rms_epsilon", "rope.dimension_count"),
      *("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
      *("rope.scaling.original_context_length",),
    }
  ),
  harmless=frozenset(
    {
      # These keys say how the file was made; its tensors have the same order of rows in any case.
      *("tensor_data_layout", "source_hf_repo", "rope.scaling.finetuned"),
    }
  ),
  neutral={
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (0,),
    "attention.layer_norm_epsilon": (),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.temperature_scale": (0,),
    "attention.output_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_shared_count": (0,),
    "leading_dense_block_count": (0,),
    "interleave_moe_layer_step": (0,),
    "nextn_predict_layers": (0,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.yarn_ext_factor": (),
    "rope.scaling.yarn_attn_factor": (),
    "rope.scaling.yarn_beta_fast": (),
    "rope.scaling.yarn_beta_slow": (),
    "rope.dimension_sections": (),
  },
  remedy=LLAMA_CONFIG.remedy,
).under("llama.")
