"""Rebuilding a byte-level BPE tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

import enum
import os
from typing import Any, NamedTuple

import tokenizers

from egad_jax.errors import InputError


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
  fields = _read_fields(path)
  model = fields.get("tokenizer.ggml.model")
  if model != "gpt2":
    raise InputError(
      f"{path}: its tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) can be built "
      "from GGUF metadata. Give the model's Hugging Face directory with tokenizer.json instead."
    )
  tokens, types, merges = (
    fields.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")
  )
  if not tokens or not types or merges is None or len(tokens) != len(types):
    raise InputError(
      f"{path}: tokenizer.ggml.tokens, token_type and merges must all be there, the first two of "
      f"one length; got {len(tokens or ())}, {len(types or ())} and {len(merges or ())} entries. "
      "The file is damaged or was converted without its tokenizer: download or convert it again."
    )
  return GgufTokenizer(
    tokenizer=_build(tokens, types, merges, _pre_tokenizer(fields, path)),
    bos_id=fields.get("tokenizer.ggml.bos_token_id"),
    eos_id=fields.get("tokenizer.ggml.eos_token_id"),
    pad_id=fields.get("tokenizer.ggml.padding_token_id"),
    unk_id=fields.get("tokenizer.ggml.unknown_token_id"),
    chat_template=fields.get("tokenizer.chat_template"),
    max_length=fields.get(f"{fields.get('general.architecture')}.context_length"),
  )


def _read_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
  import gguf

  try:
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}
  # gguf has no error of its own: a short or foreign file surfaces as whatever numpy raises.
  except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
    raise InputError(
      f"{path}: not a readable GGUF file ({type(error).__name__}: {error}). It may be truncated: "
      "compare its size with the original and download it again."
    ) from error


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
  if name not in _PRE_TOKENIZERS:
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
