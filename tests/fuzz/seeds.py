"""Small whole files, made by the project itself and by the packages that define the formats."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import random
from typing import Any

import gguf
import numpy as np
import pyarrow
import pyarrow.parquet
import zstandard

from configs import default
from egad_jax import from_config
from egad_jax.data.gguf_tokenizer import TokenType
from egad_jax.data.tokenizer import Tokenizer
from egad_jax.models import family
from egad_jax.models.config import DecoderConfig, Llama3RopeScaling
from tests.models.safetensors_files import write_safetensors

CONFIG = DecoderConfig(
  vocab_size=272,
  dim=32,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=16,
  mlp_dim=32,
  max_seq_len=64,
)
TEMPLATES = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
  "{{ bos_token }}{% set ns = namespace(found=false) %}{% for m in messages if m.role != 'x' %}"
  "{% if loop.index0 % 2 == 1 %}{{ raise_exception('roles must alternate') }}{% endif %}"
  "{% set ns.found = true %}[INST] {{ m.content | tojson }} [/INST]{% endfor %}",
  "{% macro show(items, n=3) %}{% for i in range(n) %}{{ items[i % (items | length)] }}"
  "{% if i > 5 %}{% break %}{% endif %}{% endfor %}{% endmacro %}{{ show(messages[0].content) }}"
  "{{ strftime_now('%d %b %Y') }}{{ 'a' * 3 ~ 2 ** 3 }}{{ '%5d' % 1 }}{{ 'x' | center(9) }}",
)
TEXT = "def f(x1):\n  return 'naïve café 🙂 teacher entropy'  # 123\n\n\nThe end.\n"
# Another program's kind of tokenizer.json: SentencePiece-like, with every kind of step.
_PIECES = ("<unk>", "<s>", "</s>", "▁", "a", "b", "e", "n", "t", "▁t", "en", "▁a")
SENTENCEPIECE: dict[str, Any] = {
  "version": "1.0",
  "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
  "padding": {
    "strategy": {"Fixed": 16},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<unk>",
  },
  "added_tokens": [
    {"id": i, "content": c, "single_word": False, "lstrip": False, "rstrip": False}
    | {"normalized": False, "special": True}
    for i, c in enumerate(_PIECES[:3])
  ],
  "normalizer": {
    "type": "Sequence",
    "normalizers": [
      {"type": "Prepend", "prepend": "▁"},
      {"type": "NFKC"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
  },
  "pre_tokenizer": {
    "type": "Sequence",
    "pretokenizers": [
      {
        "type": "Split",
        "pattern": {"Regex": r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"},
        "behavior": "Isolated",
        "invert": False,
      },
      {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
    ],
  },
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [
      {"SpecialToken": {"id": "<s>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
  },
  "decoder": {
    "type": "Sequence",
    "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
      {"type": "ByteFallback"},
      {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
  },
  "model": {
    "type": "BPE",
    "dropout": None,
    "unk_token": "<unk>",
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
    "vocab": {piece: i for i, piece in enumerate(_PIECES)},
    "merges": [["▁", "t"], ["e", "n"], ["▁", "a"]],
  },
}


@dataclasses.dataclass(frozen=True)
class Seeds:
  """Whole inputs of every format.

  Attributes:
    gguf: files of a model with its tokenizer.
    safetensors: directories of a model, file name -> content.
    tokenizers: directories of a tokenizer, likewise.
    texts: corpora, (file name, content).
    chats: records of every format, (file name, content).
    packed: the same in Parquet files and compressed ones.
    config: a run's config as plain values.
  """

  gguf: list[bytes]
  safetensors: list[dict[str, bytes]]
  tokenizers: list[dict[str, bytes]]
  texts: list[tuple[str, bytes]]
  chats: list[tuple[str, bytes]]
  packed: list[tuple[str, bytes]]
  config: dict[str, Any]


def make_seeds(directory: pathlib.Path) -> Seeds:
  """Makes all seeds; needs an empty directory to write in."""
  tokenizer = Tokenizer.train([TEXT], vocab_size=270)
  tokenizer.chat_template = TEMPLATES[0]
  tokenizer.save(directory / "tokenizer")
  trained = _files(directory / "tokenizer")
  lists = {"chat_template": [{"name": "default", "template": TEMPLATES[1]}], "eos_token": "</s>"}
  other = {
    "tokenizer.json": json.dumps(SENTENCEPIECE).encode(),
    "tokenizer_config.json": json.dumps(lists | {"bos_token": {"content": "<s>"}}).encode(),
  }
  whole = _directory(directory / "whole", CONFIG, shards=1)
  scaled = dataclasses.replace(
    CONFIG, tie_embeddings=False, rope_scaling=Llama3RopeScaling(factor=8.0)
  )
  sharded = _directory(directory / "sharded", scaled, shards=2)
  chats = _chats()
  lines = [json.dumps({"text": f"{TEXT}{i}", "id": i}) for i in range(12)]
  return Seeds(
    gguf=[
      _gguf(directory / f"{kind}.gguf", tokenizer, gguf.GGMLQuantizationType[kind])
      for kind in ("F32", "F16", "Q8_0")
    ],
    safetensors=[whole | {"README.md": b"---\nlicense: mit\n---\n"}, sharded],
    tokenizers=[trained, other],
    texts=[
      ("a.jsonl", "\n".join(lines).encode()),
      ("a.txt", (TEXT * 8).encode()),
      ("a.md", ("\ufeff# Title\n\n\f" + TEXT * 3).encode()),
    ],
    chats=chats,
    packed=_packed(directory, chats),
    config=from_config.plain(default.get_config()),
  )


def _chats() -> list[tuple[str, bytes]]:
  ask, say = {"role": "user", "content": TEXT}, {"role": "assistant", "content": "It is."}
  call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
  kinds: dict[str, list[Any]] = {
    "messages": [
      {"messages": [{"role": "system", "content": "Be brief."}, ask, say, ask, say]},
      {"messages": [ask, call, {"role": "tool", "content": "4"}, say], "tools": [{"name": "f"}]},
      {"messages": [ask, {**say, "reasoning_content": "hm"}]},
    ],
    "prompt_completion": [
      {"prompt": "2 + 2 =", "completion": " 4"},
      {"prompt": [ask], "completion": [say]},
      {"prompt": "Hi", "completion": [say]},
    ],
    "alpaca": [{"instruction": "Add.", "input": "2, 2", "output": "4"}] * 3,
  }
  found = []
  for name, records in kinds.items():
    found.append((f"{name}.jsonl", "\n".join(map(json.dumps, records)).encode()))
    found.append((f"{name}.json", json.dumps(records, indent=1).encode()))
  return found


def _packed(directory: pathlib.Path, chats: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
  found = [(f"{name}.gz", gzip.compress(data)) for name, data in chats]
  found += [(f"{name}.zst", zstandard.compress(data)) for name, data in chats]
  for name, compression in (("messages", "none"), ("alpaca", "zstd"), ("messages", "snappy")):
    records = json.loads(next(data for file, data in chats if file == f"{name}.json"))
    path = directory / "a.parquet"
    rows = [{key: value for key, value in record.items() if key != "tools"} for record in records]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression=compression)
    # The most of them, since each is a format of its own.
    found += [(f"{name}.parquet", path.read_bytes())] * 6
  return found


def _files(directory: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _arrays(config: DecoderConfig) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
    tensor.hf: rng.standard_normal(tensor.shape).astype(np.float32)
    for tensor in family.tensors(config)
  }


def _directory(directory: pathlib.Path, config: DecoderConfig, *, shards: int) -> dict[str, bytes]:
  directory.mkdir()
  data = family.config_to_hf(config, bos_id=1, eos_id=2, pad_id=2, dtype="float32")
  (directory / "config.json").write_text(json.dumps(data))
  arrays = _arrays(config)
  if shards == 1:
    write_safetensors(directory / "model.safetensors", arrays)
    return _files(directory)
  weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(arrays))}
  for file in set(weight_map.values()):
    part = {name: arrays[name] for name in arrays if weight_map[name] == file}
    write_safetensors(directory / file, part, dtype="bfloat16")
  index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
  (directory / "model.safetensors.index.json").write_text(json.dumps(index))
  return _files(directory)


def _gguf(path: pathlib.Path, tokenizer: Tokenizer, kind: gguf.GGMLQuantizationType) -> bytes:
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_block_count(CONFIG.num_layers)
  writer.add_context_length(CONFIG.max_seq_len)
  writer.add_embedding_length(CONFIG.dim)
  writer.add_feed_forward_length(CONFIG.mlp_dim)
  writer.add_head_count(CONFIG.num_heads)
  writer.add_head_count_kv(CONFIG.num_kv_heads)
  writer.add_rope_freq_base(CONFIG.rope_theta)
  writer.add_layer_norm_rms_eps(CONFIG.norm_eps)
  writer.add_string("general.license", "mit")
  ids = range(tokenizer.vocab_size)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list([tokenizer.id_to_token(i) or "" for i in ids])
  special = tokenizer.special_tokens
  writer.add_token_types([TokenType.CONTROL if i in special else TokenType.NORMAL for i in ids])
  merges = json.loads((path.parent / "tokenizer" / "tokenizer.json").read_text())["model"]["merges"]
  writer.add_token_merges([" ".join(pair) for pair in merges])
  writer.add_eos_token_id(tokenizer.eos_id)
  writer.add_chat_template(TEMPLATES[0])
  arrays = _arrays(CONFIG)
  for tensor in family.tensors(CONFIG):
    stored = kind if len(tensor.shape) > 1 else gguf.GGMLQuantizationType.F32
    writer.add_tensor(tensor.gguf, gguf.quantize(arrays[tensor.hf], stored), raw_dtype=stored)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path.read_bytes()


def pick(rng: random.Random, files: dict[str, bytes], suffixes: tuple[str, ...]) -> str:
  """One of the files that end so."""
  return rng.choice([name for name in sorted(files) if name.endswith(suffixes)])
