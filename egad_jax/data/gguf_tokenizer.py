"""Rebuilds a tokenizer, byte-level BPE or Gemma's SentencePiece, from a GGUF file's metadata."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import tokenizers

from egad_jax.data import gguf_sentencepiece
from egad_jax.data.gguf_pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, make_pre_tokenizer
from egad_jax.data.gguf_sentencepiece import TokenType, is_run_of_spaces
from egad_jax.data.rust_errors import rust_errors
from egad_jax.errors import InputError
from egad_jax.files.gguf_file import as_list, open_gguf

# Twice the largest known vocabulary; a token takes about a kilobyte while a tokenizer is built.
_MAX_TOKENS = 2**19


class GgufTokenizer(NamedTuple):
  """A GGUF file's tokenizer.

  Attributes:
    tokenizer: the tokenizer, without a post-processor.
    bos_id: beginning of sequence; None if the file has none.
    eos_id: end of sequence; None if the file has none.
    pad_id: padding; None if the file has none.
    unk_id: unknown token; None if the file has none.
    chat_templates: Jinja sources by name; the unnamed one is "default".
    max_length: context length of the model, in tokens; None if the file does not say.
    prefix_ids: ids put in front of every text; () for none.
    suffix_ids: ids put behind every text; () for none.
  """

  tokenizer: tokenizers.Tokenizer
  bos_id: int | None
  eos_id: int | None
  pad_id: int | None
  unk_id: int | None
  chat_templates: dict[str, str]
  max_length: int | None
  prefix_ids: tuple[int, ...]
  suffix_ids: tuple[int, ...]


_PREFIX = "tokenizer.ggml."
_SPACE_PREFIX = f"{_PREFIX}add_space_prefix"
# llama.cpp's name of SentencePiece's BPE, which Gemma has, too.
_SENTENCEPIECE = "llama"
# Keys of tokenizer.ggml.* that are read here or, for the ends of a generation, by `gguf_import`.
_READ = {
  "model",
  "pre",
  "tokens",
  "token_type",
  "merges",
  # Read for SentencePiece; byte-level BPE ignores them.
  "scores",
  "bos_token_id",
  "eos_token_id",
  "unknown_token_id",
  "padding_token_id",
  "add_bos_token",
  "add_eos_token",
  "eot_token_id",
  "eom_token_id",
}
# Keys that change no id of a text: roles that are not used here.
_HARMLESS = {
  "token_type_count",
  "add_sep_token",
  "seperator_token_id",
  "cls_token_id",
  "mask_token_id",
  *(f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
  "prefix_token_id",
  "suffix_token_id",
  "middle_token_id",
}
# Keys that would change ids if they were set.
_MUST_BE_OFF = {
  "add_space_prefix",
  "remove_extra_whitespaces",
  "precompiled_charsmap",
  "suppress_tokens",
  "normalizer.lowercase",
  "normalizer.strip_accents",
}
_TEMPLATE = "tokenizer.chat_template"
# A whole tokenizer.json, which llama.cpp ignores too, and the list of the templates' names.
_OTHER_HARMLESS = {"tokenizer.huggingface.json", f"{_TEMPLATE}s"}
_DIRECTORY_INSTEAD = (
  "Give the model's Hugging Face directory with tokenizer.json instead, by config.data.tokenizer "
  "or generate.py's --tokenizer."
)


def read_gguf_tokenizer(path: str | os.PathLike[str]) -> GgufTokenizer:
  """Reads the tokenizer of a GGUF file.

  Trailing tokens of type "unused" are left out: they are rows that pad the embedding.

  Args:
    path: the GGUF file.

  Returns:
    The tokenizer with its special ids, chat templates and context length.

  Raises:
    InputError: the file cannot be read, or its tokenizer is absent, damaged, or neither byte-level
      BPE with a known pre-tokenizer nor SentencePiece without a space in front.
  """
  fields = open_gguf(path).metadata
  model = fields.get("tokenizer.ggml.model")
  if model not in ("gpt2", _SENTENCEPIECE):
    raise InputError(
      f"{path}: its tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) and 'llama' "
      f"(SentencePiece) can be built from GGUF metadata. {_DIRECTORY_INSTEAD}"
    )
  pieces = model == _SENTENCEPIECE
  # llama.cpp puts a space in front of every text unless the file says that it must not.
  if pieces and fields.get(_SPACE_PREFIX) is not False:
    raise InputError(
      f"{path}: its SentencePiece tokenizer puts a space in front of a text ({_SPACE_PREFIX} is "
      f"not false), which cannot be followed from GGUF metadata. {_DIRECTORY_INSTEAD}"
    )
  _check_keys(fields, path)
  names = ("tokens", "token_type", "scores" if pieces else "merges")
  lists: list[Any] = [as_list(fields.get(f"tokenizer.ggml.{key}")) for key in names]
  tokens, types, third = lists
  if tokens and len(tokens) > _MAX_TOKENS:
    raise InputError(
      f"{path}: tokenizer.ggml.tokens has {len(tokens)} entries; at most {_MAX_TOKENS} are read. "
      "The file is damaged: download or convert it again."
    )
  whole = _is_list(tokens, str) and _is_list(types, int) and tokens and len(tokens) == len(types)
  if pieces:
    whole = whole and _is_list(third, float) and len(third) == len(tokens)
  else:
    whole = whole and _is_list(third, str) and all(" " in merge for merge in third)
  if not whole:
    raise InputError(
      f"{path}: tokenizer.ggml.{', '.join(names)} must all be there: lists of text, numbers and "
      f"{'scores, all' if pieces else 'pairs of text, the first two'} of one length and not empty. "
      "The file is damaged or was converted without its tokenizer: download or convert it again."
    )
  integer = lambda key, below: _integer(path, fields, key, below)
  unknown = integer("tokenizer.ggml.unknown_token_id", len(tokens))
  kind = PreTokenizer(()) if pieces else _pre_tokenizer(fields, path)
  adds_bos = pieces or kind.adds_bos
  with rust_errors(f"{path}: its tokenizer cannot be built", "Convert the file again."):
    tokenizer = _build(tokens, types, third, None if pieces else kind, unknown)
  architecture = fields.get("general.architecture")
  bos, eos = (integer(f"{_PREFIX}{role}_token_id", len(tokens)) for role in ("bos", "eos"))
  return GgufTokenizer(
    tokenizer=tokenizer,
    bos_id=bos,
    eos_id=eos,
    pad_id=integer("tokenizer.ggml.padding_token_id", len(tokens)),
    unk_id=unknown,
    chat_templates=_chat_templates(fields, path),
    max_length=integer(f"{architecture}.context_length", 2**31),
    prefix_ids=_around(fields, path, "bos", bos, adds_bos),
    suffix_ids=_around(fields, path, "eos", eos, False),
  )


def _check_keys(fields: dict[str, Any], path: str | os.PathLike[str]) -> None:
  """Refuses tokenizer keys that are unknown, or that are set but not supported."""
  for key, value in fields.items():
    name = key.removeprefix(_PREFIX)
    if not key.startswith("tokenizer.") or key == _TEMPLATE or key.startswith(f"{_TEMPLATE}."):
      continue
    if key in _OTHER_HARMLESS or (name != key and name in _READ | _HARMLESS):
      continue
    if name == key or name not in _MUST_BE_OFF:
      raise InputError(
        f"{path}: the metadata key {key} is not known here, and could change how text is split. "
        f"{_DIRECTORY_INSTEAD}"
      )
    if value not in (False, None, []):
      raise InputError(
        f"{path}: {key} is set, which cannot be followed from GGUF metadata. {_DIRECTORY_INSTEAD}"
      )


def _chat_templates(fields: dict[str, Any], path: str | os.PathLike[str]) -> dict[str, str]:
  templates = {}
  for key, value in fields.items():
    if key != _TEMPLATE and not key.startswith(f"{_TEMPLATE}."):
      continue
    if not isinstance(value, str):
      raise InputError(f"{path}: {key} must be text; got {value!r}.")
    templates[key.removeprefix(_TEMPLATE).removeprefix(".") or "default"] = value
  return templates


def _around(
  fields: dict[str, Any], path: str | os.PathLike[str], role: str, token: int | None, default: bool
) -> tuple[int, ...]:
  """The ids that `add_{role}_token` adds to a text: one or none."""
  key = f"{_PREFIX}add_{role}_token"
  wanted = fields.get(key, default)
  if not isinstance(wanted, bool):
    raise InputError(f"{path}: {key} must be true or false; got {wanted!r}. Convert it again.")
  # llama.cpp only warns about a flag without its token.
  if wanted and key in fields and token is None:
    raise InputError(
      f"{path}: {key} is true, but there is no {_PREFIX}{role}_token_id. Convert the file again."
    )
  return (token,) if wanted and token is not None else ()


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


def _pre_tokenizer(fields: dict[str, Any], path: str | os.PathLike[str]) -> PreTokenizer:
  name = fields.get("tokenizer.ggml.pre")
  if not isinstance(name, str) or name not in PRE_TOKENIZERS:
    raise InputError(
      f"{path}: its tokenizer.ggml.pre is {name!r}; "
      f"known are {', '.join(sorted(PRE_TOKENIZERS))}. {_DIRECTORY_INSTEAD}"
    )
  return PRE_TOKENIZERS[name]


def _build(
  tokens: list[str],
  types: list[int],
  third: list[Any],
  kind: PreTokenizer | None,
  unknown: int | None,
) -> tokenizers.Tokenizer:
  """The tokenizer: byte-level BPE of the merges in `third`, or, without a `kind`, of its scores."""
  size = len(tokens)
  while size and types[size - 1] == TokenType.UNUSED:
    size -= 1
  if kind is None:
    lists = tokens[:size], types[:size], third[:size]
    tokenizer = gguf_sentencepiece.build(*lists, unknown=unknown)
    # Runs of spaces are found by joins: in the text that these see, spaces are spelled otherwise.
    types = [
      TokenType.NORMAL if is_run_of_spaces(token) else token_type
      for token, token_type in zip(tokens, types, strict=True)
    ]
  else:
    tokenizer = _byte_level(tokens[:size], third, kind)
  tokenizer.add_special_tokens(_added(tokens, types[:size], TokenType.CONTROL))
  tokenizer.add_tokens(_added(tokens, types[:size], TokenType.USER_DEFINED))
  return tokenizer


def _byte_level(
  tokens: Sequence[str], merges: Sequence[str], kind: PreTokenizer
) -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: index for index, token in enumerate(tokens)},
      merges=[(left, right) for left, right in (merge.split(" ", 1) for merge in merges)],
      ignore_merges=kind.ignore_merges,
    )
  )
  tokenizer.pre_tokenizer = make_pre_tokenizer(kind)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  return tokenizer


def _added(tokens: list[str], types: list[int], kind: TokenType) -> list[tokenizers.AddedToken]:
  return [
    tokenizers.AddedToken(tokens[index], normalized=False, special=kind == TokenType.CONTROL)
    for index, token_type in enumerate(types)
    if token_type == kind
  ]
