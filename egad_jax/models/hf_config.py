"""config.json of Hugging Face: the keys that all families share, and a reader of their values."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Any

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig, LayerKind, shortest_pattern
from egad_jax.models.foreign_keys import (
  CORRECT,
  Table,
  listed,
  names,
  positive_integer,
  positive_number,
  shown,
)
from egad_jax.models.rope_config import rope_from_hf, rope_to_hf

ANY_MODEL = (
  names(
    """
    _name_or_path _commit_hash _attn_implementation _attn_implementation_autoset
    _attn_implementation_internal _experts_implementation attn_implementation
    _rope_scaling_validation transformers_version torch_dtype dtype use_cache return_dict
    output_hidden_states output_attentions output_scores torchscript return_dict_in_generate
    use_bfloat16 tf_legacy_loss finetuning_task id2label label2id num_labels problem_type
    task_specific_params tokenizer_class prefix bos_token_id pad_token_id sep_token_id
    decoder_start_token_id is_decoder chunk_size_feed_forward use_return_dict
    keys_to_ignore_at_inference gradient_checkpointing tie_last_hidden_states unsloth_version
    unsloth_fixed unsloth_free transformers.js_config is_llama_config license max_sequence_length
    neftune_noise_alpha model_max_length n_ctx _from_model_config auto_class
    base_model_name_or_path max_window_layers router_aux_loss_coef output_router_logits
    pretraining_mode
    """
  )
  # How the computation is arranged, not what it is.
  | names(
    """
    reorder_and_upcast_attn attention_implementation use_flash_attn use_fused_rms_norm
    """
  )
  # GPT-2's other heads, for tasks besides language modelling.
  | names(
    """
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    """
  )
  # Dropouts act in training only.
  | names(
    """
    attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop dropout
    """
  )
)

# Keys that every family reads.
_READ = names(
  """
  model_type architectures auto_map vocab_size initializer_range tie_word_embeddings eos_token_id
  head_dim
  """
)
# Keys that all families with rotary positions read, by the names that Llama gave them.
ROTARY = names(
  """
  hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
  max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters
  original_max_position_embeddings
  """
)
# Keys of some family, and the values at which they mean the same as their absence. A family takes
# those out that it reads.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
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
  "scale_attn_weights": (True,),
  "scale_attn_by_inverse_layer_idx": (False,),
  "use_bidirectional_attention": (False,),
  "mlp_only_layers": (),
  "decoder_sparse_step": (1,),
  "shared_expert_intermediate_size": (0,),
  "use_sliding_window": (False,),
  "quantization": (),
}
_REMEDY = (
  "That is another computation than the one that is run here, and the model would not be itself; "
  "use one without it."
)
_QUANTIZED = "Quantized weights are read from GGUF only; use its GGUF file."
_HINTS = {
  "quantization_config": _QUANTIZED,
  "compression_config": _QUANTIZED,
  "quantization": _QUANTIZED,
  "text_config": "Models of images and text are not read; use one of text alone.",
}
FULL, _SLIDING = "full_attention", "sliding_attention"
# Far above any model's number of layers; families list the kind of each.
_MAX_LAYERS = 2**12
# transformers' names of the functions in `config.ACTIVATIONS`; the first of each is exported.
_ACTIVATIONS = {
  "silu": ("silu", "swish"),
  "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
  "gelu": ("gelu",),
}


def config_keys(
  *read: str,
  neutral: Mapping[str, tuple[Any, ...]] = types.MappingProxyType({}),
  harmless: Iterable[str] = (),
) -> Table:
  """The table of a family's config.json.

  Args:
    *read: keys that the family reads besides those that every family reads.
    neutral: key -> values that mean the same as its absence, where the family departs from the
      rule for all families; see `Table`.
    harmless: keys that this family's class ignores, though they mean something to another.
  """
  known = _READ | frozenset(read)
  idle = (ANY_MODEL | frozenset(harmless)) - known
  merged = _NEUTRAL | dict(neutral)
  merged = {key: values for key, values in merged.items() if key not in known | idle}
  return Table(read=known, harmless=idle, neutral=merged, remedy=_REMEDY, hints=_HINTS)


class HFConfig:
  """Reads the values of a config.json; every method raises InputError for one of another kind."""

  def __init__(self, source: str, data: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Takes the content of a file.

    Args:
      source: name of the file, for messages.
      data: its content.
      defaults: the values that the family's class in transformers gives to absent keys.
    """
    self.source, self.data, self._defaults = source, data, defaults

  def get(self, key: str) -> Any:
    """The value of a key, or its default."""
    return self.data[key] if key in self.data else self._defaults.get(key)

  def integer(self, key: str, default: int | None = None) -> int:
    """A positive integer; a key that is null takes `default`."""
    value = self.get(key)
    return positive_integer(self.source, key, default if value is None else value)

  def count(self, key: str) -> int:
    """A positive integer or 0."""
    return 0 if self.get(key) == 0 and self.get(key) is not False else self.integer(key)

  def number(self, key: str) -> float:
    """A positive number."""
    return positive_number(self.source, key, self.get(key))

  def number_or_none(self, key: str) -> float | None:
    """A positive number, or None where the key is null or absent."""
    return None if self.get(key) is None else self.number(key)

  def flag(self, key: str) -> bool:
    """True or false; null and absent keys without a default are false."""
    value = self.get(key)
    if not isinstance(value, bool | None):
      raise InputError(f"{self.source}: {key} must be true or false; got {shown(value)}. {CORRECT}")
    return bool(value)

  def activation(self, key: str) -> str:
    """One of `config.ACTIVATIONS`."""
    value = self.get(key)
    for ours, theirs in _ACTIVATIONS.items():
      if isinstance(value, str) and value in theirs:
        return ours
    known = ", ".join(name for names in _ACTIVATIONS.values() for name in names)
    raise InputError(f"{self.source}: {key} must be one of {known}; got {shown(value)}. {_REMEDY}")

  def layers(self) -> int:
    """The number of layers, small enough for lists with an entry for each."""
    count = self.integer("num_hidden_layers")
    if count > _MAX_LAYERS:
      raise InputError(
        f"{self.source}: num_hidden_layers must be at most {_MAX_LAYERS}; got {count}. {CORRECT}"
      )
    return count

  def layer_values(self, key: str, allowed: Iterable[Any], count: int) -> list[Any] | None:
    """A list with one of the allowed values for each layer; None if the key is absent."""
    values, allowed = self.data.get(key), tuple(allowed)
    if values is None:
      return None
    if (
      not isinstance(values, list)
      or len(values) < count
      or any(isinstance(v, (list, dict)) or v not in allowed for v in values)
    ):
      raise InputError(
        f"{self.source}: {key} must be a list of {count} values, for each layer one of "
        f"{listed(list(map(repr, allowed)))}; got {shown(values)}. {_REMEDY}"
      )
    return values[:count]

  def sliding(self, default: Iterable[bool]) -> list[bool]:
    """Whether each layer has a window, by layer_types or by the family's rule.

    Args:
      default: the rule's answer for each layer.
    """
    default = list(default)
    kinds = self.layer_values("layer_types", (FULL, _SLIDING), len(default))
    return default if kinds is None else [kind == _SLIDING for kind in kinds]

  def config(self, **fields: Any) -> DecoderConfig:
    """The architecture by the keys that Llama has too.

    Args:
      **fields: fields of `DecoderConfig` that the family reads from other keys, or has always.
    """
    heads, dim = self.integer("num_attention_heads"), self.integer("hidden_size")
    if "rope_theta" not in fields:
      theta = self._defaults.get("rope_theta", 10_000.0)
      base, scaling = rope_from_hf(self.source, self.data, default_theta=theta)
      fields |= {"rope_theta": base, "rope_scaling": scaling}
    std = self.get("initializer_range")
    common = {
      "vocab_size": self.integer("vocab_size"),
      "dim": dim,
      "num_layers": self.integer("num_hidden_layers"),
      "num_heads": heads,
      "num_kv_heads": self.integer("num_key_value_heads", heads),
      "head_dim": self.integer("head_dim", dim // heads),
      "norm_eps": self.number("rms_norm_eps"),
      "tie_embeddings": self.flag("tie_word_embeddings"),
      "max_seq_len": self.integer("max_position_embeddings"),
      "embedding_std": positive_number(
        self.source, "initializer_range", 0.02 if std is None else std
      ),
    }
    if "mlp_dim" not in fields:
      fields["mlp_dim"] = self.integer("intermediate_size")
    return checked_config(self.source, **(common | fields))

  def factor(self, key: str) -> float | None:
    """A positive number that multiplies or divides something; None for 1."""
    value = self.number(key)
    return None if value == 1 else value

  def query_scale(self, key: str) -> float | None:
    """`DecoderConfig.query_scale` where a key holds scale ** -2, as Gemma's does."""
    scalar, heads = self.number(key), self.integer("num_attention_heads")
    usual = self.integer("head_dim", self.integer("hidden_size") // heads)
    return None if scalar == usual else scalar**-0.5

  def window(self) -> int | None:
    """The window of layers that have one; None if it reaches over all positions."""
    if self.get("sliding_window") is None:
      return None
    window = self.integer("sliding_window")
    return None if window >= self.integer("max_position_embeddings") else window


def checked_config(source: str, **fields: Any) -> DecoderConfig:
  """A `DecoderConfig` whose errors name the file that its fields come from."""
  try:
    return DecoderConfig(**fields)
  except InputError as error:
    raise InputError(f"{source}: {error}") from error


def pattern_of(kinds: Iterable[LayerKind]) -> tuple[LayerKind, ...]:
  """The pattern of an architecture with these layers."""
  return shortest_pattern(list(kinds))


def rotary_to_hf(config: DecoderConfig) -> dict[str, Any]:
  """The keys of a config.json that all families with rotary positions share."""
  return {
    "head_dim": config.head_dim,
    "hidden_act": hf_activation(config),
    "hidden_size": config.dim,
    "initializer_range": config.embedding_std,
    "intermediate_size": config.mlp_dim,
    "max_position_embeddings": config.max_seq_len,
    "num_attention_heads": config.num_heads,
    "num_hidden_layers": config.num_layers,
    "num_key_value_heads": config.num_kv_heads,
    "rms_norm_eps": config.norm_eps,
    **rope_to_hf(config),
  }


def hf_activation(config: DecoderConfig) -> str:
  """transformers' name of the activation."""
  return _ACTIVATIONS[config.activation][0]


def layer_types(config: DecoderConfig) -> list[str]:
  """`layer_types` of a config.json, from the windows of the layers."""
  kinds = (config.kind(i) for i in range(config.num_layers))
  return [FULL if kind.window is None else _SLIDING for kind in kinds]


def query_scalar(config: DecoderConfig) -> float:
  """query_scale ** -2, which Gemma's config.json holds; undoes `HFConfig.query_scale`."""
  if config.query_scale is None:
    return config.head_dim
  scalar = config.query_scale**-2
  return round(scalar) if round(scalar) ** -0.5 == config.query_scale else scalar


def common_window(config: DecoderConfig) -> int | None:
  """The window of the layers that have one; None if none has.

  Raises:
    InputError: windows of several sizes, which no family has.
  """
  windows = {kind.window for kind in config.pattern if kind.window is not None}
  if len(windows) > 1:
    raise InputError(f"all windows of a model must have one size; got {sorted(windows)}.")
  return next(iter(windows), None)
