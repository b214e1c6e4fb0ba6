"""Rebuilding a byte-level BPE tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

import enum
import os
from typing import Any, NamedTuple

import tokenizers

from egad_jax.data.rust_errors import rust_errors
from egad_jax.errors import InputError
from egad_jax.gguf_file import as_list, open_gguf

# Twice the largest vocabulary there is. A token takes about a kilobyte while a tokenizer is built.
_MAX_TOKENS = 2**19


class TokenType(enum.IntEnum):
  """What `tokenizer.ggml.token_type` says of each token (llama.cpp's numbering)."""

  NORMAL = 1
  UNKNOWN = 2
  CONTROL = 3
  USER_DEFINED = 4
  UNUSED = 5
  BYTE = 6


class GgufTokenizer(NamedTuple):
  """What a GGUF file says about its tokenizer; absent fields are None."""

  tokenizer: tokenizers.Tokenizer
  bos_id: int | None
  eos_id: int | None
  pad_id: int | None
  unk_id: int | None
  chat_template: str | None
  max_length: int | None


def read_gguf_tokenizer(path: str | os.PathLike[str]) -> GgufTokenizer:
  """Reads the tokenizer of a GGUF file.

  Trailing tokens of type "unused" are rows that pad the embedding, not tokens: they are left out.

  Args:
    path: the GGUF file.

  Returns:
    The tokenizer with its special ids, chat template and context length.

  Raises:
    InputError: if the file cannot be read, has no tokenizer, or one of another kind than
      byte-level BPE with a known pre-tokenizer.
  """
  fields = open_gguf(path).metadata
  model = fields.get("tokenizer.ggml.model")
  if model != "gpt2":
    raise InputError(
      f"{path}: its tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) can be built "
      "from GGUF metadata. Give the model's Hugging Face directory with tokenizer.json instead."
    )
  lists: list[Any] = [
    as_list(fields.get(f"tokenizer.ggml.{key}")) for key in ("tokens", "token_type", "merges")
  ]
  tokens, types, merges = lists
  if tokens and len(tokens) > _MAX_TOKENS:
    raise InputError(
      f"{path}: tokenizer.ggml.tokens has {len(tokens)} entries; at most {_MAX_TOKENS} are read. "
      "The file is damaged: download or convert it again."
    )
  whole = _is_list(tokens, str) and _is_list(types, int) and _is_list(merges, str)
  if not (whole and tokens and len(tokens) == len(types) and all(" " in m for m in merges)):
    raise InputError(
      f"{path}: tokenizer.ggml.tokens, token_type and merges must all be there: lists of text, "
      "numbers and pairs of text, the first two of one length and not empty. The file is damaged "
      "or was converted without its tokenizer: download or convert it again."
    )
  template = fields.get("tokenizer.chat_template")
  if template is not None and not isinstance(template, str):
    raise InputError(f"{path}: tokenizer.chat_template must be text; got {template!r}.")
  pre_tokenizer = _pre_tokenizer(fields, path)
  with rust_errors(f"{path}: its tokenizer cannot be built", "Convert the file again."):
    tokenizer = _build(tokens, types, merges, pre_tokenizer)
  architecture = fields.get("general.architecture")
  integer = lambda key, below: _integer(path, fields, key, below)
  return GgufTokenizer(
    tokenizer=tokenizer,
    bos_id=integer("tokenizer.ggml.bos_token_id", len(tokens)),
    eos_id=integer("tokenizer.ggml.eos_token_id", len(tokens)),
    pad_id=integer("tokenizer.ggml.padding_token_id", len(tokens)),
    unk_id=integer("tokenizer.ggml.unknown_token_id", len(tokens)),
    chat_template=template,
    max_length=integer(f"{architecture}.context_length", 2**31),
  )


def _is_list(value: Any, kind: type) -> bool:
  return isinstance(value, list) and all(isinstance(entry, kind) for entry in value)


def _integer(
  path: str | os.PathLike[str], fields: dict[str, Any], key: str, below: int
) -> int | None:
  value = fields.get(key)
  if value is not None and not (isinstance(value, int) and 0 <= value < below):
    raise InputError(
      f"{path}: {key} must be a number from 0 to {below - 1}; got {value!r}. Convert the file "
      "again."
    )
  return value


def digits_and_bytes() -> tokenizers.pre_tokenizers.PreTokenizer:
  """SmolLM's pre-tokenizer: every digit alone, then GPT-2's pattern on bytes."""
  return tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )


_PRE_TOKENIZERS = {
  "smollm": digits_and_bytes,
  "gpt-2": lambda: tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
}


def _pre_tokenizer(
  fields: dict[str, Any], path: str | os.PathLike[str]
) -> tokenizers.pre_tokenizers.PreTokenizer:
  name = fields.get("tokenizer.ggml.pre")
  if not isinstance(name, str) or name not in _PRE_TOKENIZERS:
    raise InputError(
      f"{path}: its tokenizer.ggml.pre is {name!r}; "
      f"known are {', '.join(sorted(_PRE_TOKENIZERS))}. "
      "Give the model's Hugging Face directory with tokenizer.json instead."
    )
  return _PRE_TOKENIZERS[name]()


def _build(
  tokens: list[str],
  types: list[int],
  merges: list[str],
  pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer,
) -> tokenizers.Tokenizer:
  size = len(tokens)
  while size and types[size - 1] == TokenType.UNUSED:
    size -= 1
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: index for index, token in enumerate(tokens[:size])},
      merges=[(left, right) for left, right in (merge.split(" ", 1) for merge in merges)],
    )
  )
  tokenizer.pre_tokenizer = pre_tokenizer
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(_added(tokens, types[:size], TokenType.CONTROL))
  tokenizer.add_tokens(_added(tokens, types[:size], TokenType.USER_DEFINED))
  return tokenizer


def _added(tokens: list[str], types: list[int], kind: TokenType) -> list[tokenizers.AddedToken]:
  return [
    tokenizers.AddedToken(tokens[index], normalized=False, special=kind == TokenType.CONTROL)
    for index, token_type in enumerate(types)
    if token_type == kind
  ]
