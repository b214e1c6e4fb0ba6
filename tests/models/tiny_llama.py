"""A Llama of 260 ids: its files in foreign layouts, and what it says, computed by numpy alone.

Byte b has the id 4 + its place in the sorted byte alphabet; ids 0 to 3 are the special tokens.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
import tokenizers

SPECIAL = ["<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", "<|pad|>"]
CONFIG: dict[str, Any] = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "vocab_size": 260,
  "max_position_embeddings": 512,
  "rms_norm_eps": 1e-6,
  "rope_theta": 10000.0,
  "hidden_act": "silu",
  "tie_word_embeddings": False,
  "bos_token_id": 1,
  "eos_token_id": 0,
  "torch_dtype": "float32",
}
_MATRICES = {
  "self_attn.q_proj": (32, 32),
  "self_attn.k_proj": (16, 32),
  "self_attn.v_proj": (16, 32),
  "self_attn.o_proj": (32, 32),
  "mlp.gate_proj": (48, 32),
  "mlp.up_proj": (48, 32),
  "mlp.down_proj": (32, 48),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")
_GGUF_NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
}
_GGUF_METADATA: dict[str, Any] = {
  "llama.context_length": 512,
  "llama.embedding_length": 32,
  "llama.block_count": 2,
  "llama.feed_forward_length": 48,
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
  "llama.attention.layer_norm_rms_epsilon": 1e-6,
  "llama.rope.dimension_count": 8,
  "llama.rope.freq_base": 10000.0,
  "tokenizer.ggml.model": "gpt2",
  "tokenizer.ggml.pre": "llama-bpe",
  "tokenizer.ggml.bos_token_id": 1,
  "tokenizer.ggml.eos_token_id": 0,
  "tokenizer.ggml.add_bos_token": True,
}

Arrays = Mapping[str, np.ndarray]


def tokenizer(bos: bool = False) -> tokenizers.Tokenizer:
  """Bytes and four special tokens; with `bos` a post-processor puts <|begin_of_text|> in front."""
  ids = {token: i for i, token in enumerate(SPECIAL + _alphabet())}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[]))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(SPECIAL)
  if bos:
    made.post_processor = tokenizers.processors.TemplateProcessing(
      single=f"{SPECIAL[1]} $A", special_tokens=[(SPECIAL[1], 1)]
    )
  return made


def tensors(seed: int = 0, rows: int = 260, tied: bool = False) -> dict[str, np.ndarray]:
  """Random weights, float32, by their Hugging Face names; `tied` leaves lm_head out."""
  random = np.random.default_rng(seed)

  def draw(*shape: int) -> np.ndarray:
    return (0.25 * random.standard_normal(shape)).astype(np.float32)

  found = {"model.embed_tokens.weight": draw(rows, 32), "model.norm.weight": 1 + draw(32)}
  for layer in range(CONFIG["num_hidden_layers"]):
    prefix = f"model.layers.{layer}"
    found |= {f"{prefix}.{name}.weight": draw(*shape) for name, shape in _MATRICES.items()}
    found |= {f"{prefix}.{name}.weight": 1 + draw(32) for name in _NORMS}
  if not tied:
    found["lm_head.weight"] = draw(rows, 32)
  return found


def save(arrays: Arrays, path: str | os.PathLike[str]) -> None:
  """Writes one safetensors file."""
  contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
  safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"})


def make(
  directory: str | os.PathLike[str],
  arrays: Arrays | None = None,
  *,
  bos: bool = False,
  tokenizer_config: Mapping[str, Any] | None = None,
  generation_config: Mapping[str, Any] | None = None,
  **config: Any,
) -> pathlib.Path:
  """Writes a whole Hugging Face directory and returns its path.

  Args:
    directory: made if it is not there; what is there stays.
    arrays: the weights, those of `tensors()` if None.
    bos: see `tokenizer`.
    tokenizer_config: further keys of tokenizer_config.json.
    generation_config: contents of generation_config.json; None writes none.
    **config: further keys of config.json.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  save(tensors() if arrays is None else arrays, directory / "model.safetensors")
  tokenizer(bos).save(str(directory / "tokenizer.json"))
  roles = {
    "bos_token": SPECIAL[1],
    "eos_token": SPECIAL[0],
    "pad_token": SPECIAL[3],
    "tokenizer_class": "PreTrainedTokenizerFast",
  }
  files: dict[str, Any] = {
    "config.json": CONFIG | config,
    "tokenizer_config.json": roles | dict(tokenizer_config or {}),
    "generation_config.json": generation_config,
  }
  for name, content in files.items():
    if content is not None:
      (directory / name).write_text(json.dumps(content, indent=1), "utf-8")
  return directory


def make_gguf(
  path: str | os.PathLike[str],
  arrays: Arrays | None = None,
  *,
  merges: Sequence[str] = ("\u0120 t",),
  metadata: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Writes model and tokenizer as one GGUF file, as of a Llama 3, and returns its path.

  Args:
    path: the file.
    arrays: the weights; if None, those of `tensors` with one row for each id.
    merges: pairs of bytes, each of which adds an id: from 260 on.
    metadata: further keys, or None in place of a value to leave a key out.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  if arrays is None:
    arrays = tensors(rows=260 + len(merges))
  writer = gguf.GGUFWriter(path, "llama")
  added = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
  for key, value in (_GGUF_METADATA | dict(metadata or {})).items():
    if value is not None:
      getattr(writer, f"add_{added[type(value)]}")(key, value)
  tokens = SPECIAL + _alphabet() + ["".join(pair.split(" ")) for pair in merges]
  control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
  writer.add_token_list(tokens)
  writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
  writer.add_token_merges(list(merges))
  for name, array in arrays.items():
    writer.add_tensor(*_as_gguf(name, array))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def logits(
  arrays: Arrays, ids: Sequence[int], *, position_scale: float = 1.0, theta: float = 10000.0
) -> np.ndarray:
  """What the model says after each id: float64 `[len(ids), rows]`."""
  w = {name: array.astype(np.float64) for name, array in arrays.items()}
  names = "model.embed_tokens.weight", "lm_head.weight"
  table, head = (w[name] if name in w else w[other] for name, other in (names, names[::-1]))
  count = len(ids)
  angles = position_scale * np.arange(count)[:, None] * theta ** (-np.arange(0, 8, 2) / 8)
  cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

  def norm(x: np.ndarray, name: str) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]

  def rotate(x: np.ndarray) -> np.ndarray:
    first, second = x[..., :4], x[..., 4:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

  x = table[list(ids)]
  for layer in range(CONFIG["num_hidden_layers"]):
    prefix = f"model.layers.{layer}"
    m = {name: w[f"{prefix}.{name}.weight"].T for name in _MATRICES}
    h = norm(x, f"{prefix}.input_layernorm")
    q = rotate((h @ m["self_attn.q_proj"]).reshape(count, 4, 8))
    k = np.repeat(rotate((h @ m["self_attn.k_proj"]).reshape(count, 2, 8)), 2, axis=1)
    v = np.repeat((h @ m["self_attn.v_proj"]).reshape(count, 2, 8), 2, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(8)
    weights = softmax(np.where(np.tri(count, dtype=bool), scores, -np.inf))
    x = x + np.einsum("hqk,khd->qhd", weights, v).reshape(count, 32) @ m["self_attn.o_proj"]
    h = norm(x, f"{prefix}.post_attention_layernorm")
    gate = h @ m["mlp.gate_proj"]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ m["mlp.up_proj"])) @ m["mlp.down_proj"]
  return norm(x, "model.norm") @ head.T


def softmax(x: np.ndarray) -> np.ndarray:
  """Softmax over the last axis."""
  p = np.exp(x - x.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def greedy(
  arrays: Arrays, ids: Sequence[int], count: int, *, stop: Collection[int] = (), **how: float
) -> list[int]:
  """At most `count` most probable ids after `ids`; one of `stop` ends them and is left out.

  Args:
    arrays: the weights.
    ids: the prompt.
    count: the most that are added.
    stop: ids that end the continuation.
    **how: keywords of `logits`.
  """
  read, new = list(ids), []
  for _ in range(count):
    best = int(logits(arrays, read, **how)[-1].argmax())
    if best in stop:
      break
    new.append(best)
    read.append(best)
  return new


def _alphabet() -> list[str]:
  return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def _as_gguf(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
  """A tensor's name and layout in GGUF, whose rotary pairs are neighbouring rows."""
  stem, prefix = name.removesuffix(".weight"), ""
  if stem.startswith("model.layers."):
    _, _, layer, stem = stem.split(".", 3)
    prefix = f"blk.{layer}."
  heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(stem)
  if heads:
    array = array.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(array.shape)
  return f"{prefix}{_GGUF_NAMES[stem]}.weight", np.ascontiguousarray(array)
