"""The Llama family in foreign files: tensor names, shapes and config.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig
from egad_jax.models.foreign_keys import CORRECT, listed, positive_integer, positive_number, shown
from egad_jax.models.key_tables import LEGACY_GENERATION, LLAMA_CONFIG
from egad_jax.models.llama_family import check_family, check_layers
from egad_jax.models.model import Params
from egad_jax.models.rope_config import rope_from_hf

# Suffixes of tensors that quantized checkpoints have besides, or instead of, the weights.
_QUANTIZED = (
  ".qweight",
  ".qzeros",
  ".scales",
  ".weight_scale",
  ".weight_scale_inv",
  ".weight_packed",
  ".absmax",
  ".quant_map",
  ".g_idx",
  ".SCB",
  ".input_scale",
  ".biases",
)
_DERIVED = re.compile(
  r"(\w+\.)*(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|position_ids)"
)


class Tensor(NamedTuple):
  """One tensor of a checkpoint, and the parameter that it corresponds to.

  Attributes:
    hf: name in Hugging Face safetensors.
    gguf: name in GGUF.
    path: keys of the parameter in the nested dict.
    repeat: index on the parameter's stacked layer axis; None if it is not in a layer.
    shape: shape in the files, `[out, in]` for a matrix.
    ours: shape of the parameter, without the layer axis.
    transposed: whether the parameter is `[in, out]`.
  """

  hf: str
  gguf: str
  path: tuple[str, ...]
  repeat: int | None
  shape: tuple[int, ...]
  ours: tuple[int, ...]
  transposed: bool

  def to_ours(self, array: np.ndarray) -> np.ndarray:
    """Rearranges an array of `shape` from a file into the parameter's layout, `ours`."""
    return (array.T if self.transposed else array).reshape(self.ours)

  def from_ours(self, array: np.ndarray) -> np.ndarray:
    """Rearranges a parameter of shape `ours` into the files' layout; the result is contiguous."""
    if self.transposed:
      array = array.reshape(self.shape[::-1]).T
    return np.ascontiguousarray(array.reshape(self.shape))


def tensors(config: DecoderConfig) -> list[Tensor]:
  """All tensors of a checkpoint of this architecture."""
  c = config
  table = (c.vocab_size, c.dim)
  found = [_whole("model.embed_tokens", "token_embd", ("embedding",), table)]
  for layer in range(c.num_layers):
    found += _layer_tensors(c, layer)
  found.append(_whole("model.norm", "output_norm", ("final_norm", "scale"), (c.dim,)))
  if not c.tie_embeddings:
    found.append(_whole("lm_head", "output", ("unembedding",), table))
  return found


def _whole(hf: str, gguf: str, path: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
  return Tensor(f"{hf}.weight", f"{gguf}.weight", path, None, shape, shape, transposed=False)


def _layer_tensors(c: DecoderConfig, layer: int) -> list[Tensor]:
  repeat, kind = divmod(layer, len(c.pattern))
  queries, keys = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
  # Hugging Face name, GGUF name, our path, our input axes, our output axes.
  matrices = (
    ("self_attn.q_proj", "attn_q", ("attention", "query"), (c.dim,), queries),
    ("self_attn.k_proj", "attn_k", ("attention", "key"), (c.dim,), keys),
    ("self_attn.v_proj", "attn_v", ("attention", "value"), (c.dim,), keys),
    ("self_attn.o_proj", "attn_output", ("attention", "output"), queries, (c.dim,)),
    ("mlp.gate_proj", "ffn_gate", ("mlp", "gate"), (c.dim,), (c.mlp_dim,)),
    ("mlp.up_proj", "ffn_up", ("mlp", "up"), (c.dim,), (c.mlp_dim,)),
    ("mlp.down_proj", "ffn_down", ("mlp", "down"), (c.mlp_dim,), (c.dim,)),
  )
  norms = (
    ("input_layernorm", "attn_norm", ("attention_norm", "scale")),
    ("post_attention_layernorm", "ffn_norm", ("mlp_norm", "scale")),
  )
  prefix = ("layers", f"block_{kind}")
  hf, gguf = f"model.layers.{layer}.{{}}.weight", f"blk.{layer}.{{}}.weight"
  found = []
  for hf_name, gguf_name, path, ins, outs in matrices:
    shape = (int(np.prod(outs)), int(np.prod(ins)))
    names = hf.format(hf_name), gguf.format(gguf_name)
    found.append(Tensor(*names, prefix + path, repeat, shape, ins + outs, transposed=True))
  for hf_name, gguf_name, path in norms:
    names = hf.format(hf_name), gguf.format(gguf_name)
    found.append(Tensor(*names, prefix + path, repeat, (c.dim,), (c.dim,), transposed=False))
  return found


def check_names(source: str, *, expected: Collection[str], got: Collection[str]) -> None:
  """Checks that a checkpoint has exactly the expected tensors.

  Args:
    source: name of the checkpoint, for messages.
    expected: names of the tensors that it must have.
    got: names of the tensors that it has.

  Raises:
    InputError: tensors are missing or unexpected; the message names some.
  """
  for problem, names in (
    ("lacks", sorted(set(expected) - set(got))),
    ("has unexpected", sorted(set(got) - set(expected))),
  ):
    if names:
      raise InputError(
        f"{source} {problem} tensors: {listed(names)}. Expected the {len(expected)} tensors of a "
        f"Llama model without biases; got {len(got)}. {_names_hint(set(expected), set(got))}"
      )


def _names_hint(expected: set[str], got: set[str]) -> str:
  """A sentence that says what to do about missing or unexpected tensors."""
  extra, table = got - expected, "embed_tokens.weight"
  if expected - got == {"lm_head.weight"} and not extra:
    return (
      "If the model shares its embedding table, set tie_word_embeddings to true in config.json."
    )
  if any(name.endswith(_QUANTIZED) for name in extra):
    return "Quantized weights are read from GGUF only: use the model's GGUF file."
  if any("lora_" in name for name in extra):
    return "They are a LoRA adapter's; merge it into its model first."
  if table in extra:
    return "It was saved from the model without its head; save a LlamaForCausalLM."
  prefixes = {n.removesuffix(f"model.{table}") for n in extra if n.endswith(f"model.{table}")}
  if prefixes:
    return (
      f"Its names begin with {min(prefixes)!r}, as of a part of a larger model; save the language "
      "model by itself, as a LlamaForCausalLM."
    )
  return "Use the files that belong to this config, or a plain Llama."


def check_shape(source: str, name: str, *, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
  """Checks the shape of one tensor of a checkpoint.

  Raises:
    InputError: the shapes differ; the message has the tensor's name and both shapes.
  """
  if tuple(expected) != tuple(got):
    raise InputError(
      f"{source}: tensor {name} must have shape {list(expected)} by the model's config; "
      f"got {list(got)}."
    )


def check_tensors(
  source: str,
  config: DecoderConfig,
  name_of: Callable[[Tensor], str],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Checks names and shapes of all tensors of a checkpoint, before memory is allocated for any.

  Args:
    source: name of the checkpoint, for messages.
    config: the architecture that it must have.
    name_of: returns a tensor's name in this kind of file.
    shapes: shape of each tensor in the checkpoint, by name.

  Raises:
    InputError: tensors are missing, unexpected or of another shape; the message names them.
  """
  # A false number of layers must not make `tensors` build a huge list.
  if config.num_layers > len(shapes):
    raise InputError(
      f"{source} lacks tensors: it has {len(shapes)}, too few for the {config.num_layers} layers "
      "that its config claims."
    )
  expected = {name_of(tensor): tensor.shape for tensor in tensors(config)}
  check_names(source, expected=expected, got=shapes)
  for name, shape in expected.items():
    check_shape(source, name, expected=shape, got=shapes[name])


def check_finite(source: str, name: str, array: np.ndarray) -> None:
  """Checks that all values of one tensor of a checkpoint are finite in float32.

  Raises:
    InputError: a value is NaN, infinite or too large for float32.
  """
  # min and max propagate NaN, and need no temporary arrays.
  largest = np.maximum(-array.min(), array.max())
  if not largest <= np.finfo(np.float32).max:
    raise InputError(
      f"{source}: tensor {name} must hold finite float32 numbers; it holds others. The file may "
      "be damaged; fetch it again."
    )


def assemble(config: DecoderConfig, read: Callable[[Tensor], np.ndarray]) -> Params:
  """Builds the parameters of a model from a checkpoint.

  Args:
    config: the architecture.
    read: returns the values of one tensor, in the files' layout.

  Returns:
    numpy float32 parameters in the layout of `Model.init`.
  """
  params: Params = {}
  for tensor in tensors(config):
    array = tensor.to_ours(read(tensor))
    node = params
    for key in tensor.path[:-1]:
      node = node.setdefault(key, {})
    leaf = tensor.path[-1]
    if tensor.repeat is None:
      node[leaf] = np.array(array, np.float32)
      continue
    if leaf not in node:
      node[leaf] = np.empty((config.repeats, *tensor.ours), np.float32)
    node[leaf][tensor.repeat] = array
  return params


def take_apart(config: DecoderConfig, params: Params) -> dict[str, np.ndarray]:
  """Hugging Face name -> array in Hugging Face layout, from parameters; undoes `assemble`."""
  found = {}
  for tensor in tensors(config):
    node: Any = params
    for key in tensor.path:
      node = node[key]
    array = np.asarray(node if tensor.repeat is None else node[tensor.repeat])
    found[tensor.hf] = tensor.from_ours(array)
  return found


def config_from_hf(source: str, data: Mapping[str, Any]) -> DecoderConfig:
  """Reads the content of a Hugging Face config.json; `unread_keys` names the keys not used.

  Args:
    source: name of the file, for messages.
    data: content of the file.

  Raises:
    InputError: it is not a Llama model, or one that the decoder cannot represent exactly.
  """
  check_family(source, data)
  LLAMA_CONFIG.check(source, data)
  check_layers(source, data)
  std = data.get("initializer_range")
  tied = data.get("tie_word_embeddings")
  if not isinstance(tied, bool | None):
    raise InputError(
      f"{source}: tie_word_embeddings must be true or false; got {shown(tied)}. {CORRECT}"
    )

  def integer(key: str, default: int | None = None) -> int:
    value = data.get(key)
    return positive_integer(source, key, default if value is None else value)

  theta, scaling = rope_from_hf(source, data)
  heads, dim = integer("num_attention_heads"), integer("hidden_size")
  return checked_config(
    source,
    vocab_size=integer("vocab_size"),
    dim=dim,
    num_layers=integer("num_hidden_layers"),
    num_heads=heads,
    num_kv_heads=integer("num_key_value_heads", heads),
    head_dim=integer("head_dim", dim // heads),
    mlp_dim=integer("intermediate_size"),
    rope_theta=theta,
    rope_scaling=scaling,
    norm_eps=positive_number(source, "rms_norm_eps", data.get("rms_norm_eps", 1e-6)),
    tie_embeddings=bool(tied),
    max_seq_len=integer("max_position_embeddings", 2048),
    embedding_std=positive_number(source, "initializer_range", 0.02 if std is None else std),
  )


def unread_keys(data: Mapping[str, Any]) -> list[str]:
  """The keys of a config.json that are neither read nor known to be harmless."""
  return [key for key in LLAMA_CONFIG.unknown(data) if key not in LEGACY_GENERATION]


def checked_config(source: str, **fields: Any) -> DecoderConfig:
  """A `DecoderConfig` whose errors name the file that its fields come from."""
  try:
    return DecoderConfig(**fields)
  except InputError as error:
    raise InputError(f"{source}: {error}") from error


def config_to_hf(
  config: DecoderConfig,
  *,
  bos_id: int | None,
  eos_id: int | list[int] | None,
  pad_id: int | None,
  dtype: str,
) -> dict[str, Any]:
  """The content of a config.json that transformers loads as `LlamaForCausalLM`.

  Args:
    config: the architecture.
    bos_id: id of the beginning-of-sequence token; None if there is none.
    eos_id: id of the end-of-sequence token, or a list of ids; None if there is none.
    pad_id: id of the padding token; None if there is none.
    dtype: dtype of the weights, such as "float32".

  Raises:
    InputError: Llama cannot express the architecture.
  """
  unlike = any(k.window or not k.rope for k in config.pattern) or config.qk_norm
  if config.logit_soft_cap is not None or unlike:
    raise InputError(
      "only models of the Llama family can be exported: every layer with rotary positions and "
      "without a window, no logit soft cap, no norm of queries and keys; got pattern "
      f"{config.pattern}, logit_soft_cap {config.logit_soft_cap} and qk_norm {config.qk_norm}."
    )
  scaling = None
  if config.rope_scaling is not None:
    scaling = {
      "rope_type": "llama3",
      "factor": config.rope_scaling.factor,
      "low_freq_factor": config.rope_scaling.low_freq_factor,
      "high_freq_factor": config.rope_scaling.high_freq_factor,
      "original_max_position_embeddings": config.rope_scaling.original_max_seq_len,
    }
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": bos_id,
    "eos_token_id": eos_id,
    "pad_token_id": pad_id,
    "head_dim": config.head_dim,
    "hidden_act": "silu",
    "hidden_size": config.dim,
    "initializer_range": config.embedding_std,
    "intermediate_size": config.mlp_dim,
    "max_position_embeddings": config.max_seq_len,
    "mlp_bias": False,
    "num_attention_heads": config.num_heads,
    "num_hidden_layers": config.num_layers,
    "num_key_value_heads": config.num_kv_heads,
    "pretraining_tp": 1,
    "rms_norm_eps": config.norm_eps,
    "rope_scaling": scaling,
    "rope_theta": config.rope_theta,
    "tie_word_embeddings": config.tie_embeddings,
    "torch_dtype": dtype,
    "use_cache": True,
    "vocab_size": config.vocab_size,
  }


def is_derived(name: str) -> bool:
  """Whether a tensor is a buffer that follows from the config, such as rotary frequencies."""
  return _DERIVED.fullmatch(name) is not None
