"""The keys of tokenizer_config.json, special_tokens_map.json and added_tokens.json.

These formats are open: each class of transformers adds keys, so a key in no table is only named in
a warning. tokenizer.json decides how text is split, and a key that contradicts it is refused,
because versions of transformers differ on which of the two they follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from absl import logging

from egad_jax.data.rust_errors import rust_errors
from egad_jax.errors import InputError

FILE, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

# Keys read here or by `tokenizer_files`. Besides these, every key that ends with "_token" names a
# special token.
READ = {
  "added_tokens_decoder",
  "additional_special_tokens",
  "extra_special_tokens",
  "model_specific_special_tokens",
  "add_bos_token",
  "add_eos_token",
  "chat_template",
  "model_max_length",
  "max_len",
}
# Keys of other uses of a tokenizer (padding, cutting, decoding, images), its class or its files.
HARMLESS = {
  "tokenizer_class",
  "auto_map",
  "processor_class",
  "backend",
  "slow_tokenizer_class",
  "tokenizer_file",
  "vocab_file",
  "merges_file",
  "special_tokens_map_file",
  "files_loaded",
  "name_or_path",
  "is_local",
  "local_files_only",
  "trust_remote_code",
  "use_fast",
  "from_slow",
  "padding_side",
  "truncation_side",
  "padding",
  "truncation",
  "max_length",
  "stride",
  "pad_to_multiple_of",
  "pad_token_type_id",
  "truncation_strategy",
  "model_input_names",
  "return_token_type_ids",
  "clean_up_tokenization_spaces",
  "errors",
  "verbose",
  "init_inputs",
  "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
  "legacy",
  "spaces_between_special_tokens",
  "use_default_system_prompt",
  "sp_model_kwargs",
  "device_map",
  "response_schema",
  "response_template",
  "chat_control_tokens",
  "extra_ids",
  "do_basic_tokenize",
  "never_split",
  "transformers_version",
  "add_prefix_token",
  "unk_id",
  "bos_id",
  "eos_id",
}
# Flags that would change ids in a way that is not supported here.
MUST_BE_OFF = ("split_special_tokens", "fix_mistral_regex")
# Keys that repeat what tokenizer.json says about splitting; each is compared with it.
COMPARED = ("add_prefix_space", "do_lower_case", "strip_accents", "tokenize_chinese_chars")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def merged(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Merges tokenizer_config.json, which wins, and special_tokens_map.json; warns of differences.

  Args:
    files: content of the files by name.

  Raises:
    InputError: a flag is neither true nor false.
  """
  config, table = files[FILE], files[MAP]
  for key in sorted(config.keys() & table.keys()):
    if _token_text(config[key]) != _token_text(table[key]) and key.endswith("_token"):
      logging.warning(
        "%s says %r for %s, and %s %r; the first is used.",
        FILE,
        _token_text(config[key]),
        key,
        MAP,
        _token_text(table[key]),
      )
  both = {**table, **config}
  for key in ("add_bos_token", "add_eos_token", *MUST_BE_OFF, *COMPARED):
    if not isinstance(both.get(key), bool | None):
      raise InputError(f"{FILE}: {key} must be true or false; got {both[key]!r}.")
  return both


def check(config: Mapping[str, Any], backend: tokenizers.Tokenizer) -> None:
  """Refuses keys that contradict tokenizer.json, and warns of unknown ones.

  Args:
    config: the merged files.
    backend: the tokenizer of tokenizer.json.

  Raises:
    InputError: a key contradicts tokenizer.json or is not supported; the message names it.
  """
  for key in MUST_BE_OFF:
    if config.get(key):
      raise InputError(
        f"{FILE}: {key} is true, which is not followed here and would change ids. Remove it, or "
        "save the tokenizer again with transformers."
      )
  steps = [json.loads(step.__getstate__()) for step in _steps(backend)]
  for key, value in (
    ("add_prefix_space", _adds_prefix_space(steps)),
    *((key, _bert_option(steps, key)) for key in COMPARED[1:]),
  ):
    stated = config.get(key)
    if stated is not None and value is not None and stated != value:
      raise InputError(
        f"{FILE}: {key} is {json.dumps(stated)}, but tokenizer.json does the other. Versions of "
        f"transformers differ on which counts: set {key} to {json.dumps(value)}, or correct "
        "tokenizer.json."
      )
  unread = [
    key
    for key, value in config.items()
    if key not in READ | HARMLESS | {*MUST_BE_OFF, *COMPARED}
    and not key.endswith("_token")
    and value not in (None, False)
  ]
  if unread:
    logging.warning("%s: these keys are not read: %s.", FILE, ", ".join(sorted(unread)))


def _steps(backend: tokenizers.Tokenizer) -> Iterable[Any]:
  return (step for step in (backend.normalizer, backend.pre_tokenizer) if step is not None)


def _flat(steps: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
  for step in steps:
    inner = step.get("normalizers") or step.get("pretokenizers")
    yield from _flat(inner) if inner else [step]


def _adds_prefix_space(steps: Iterable[Mapping[str, Any]]) -> bool | None:
  """Whether a space is put in front of a text; None if no step has such an option."""
  found = None
  for step in _flat(steps):
    match step.get("type"):
      case "ByteLevel" if "add_prefix_space" in step:
        found = bool(found) or step["add_prefix_space"]
      case "Metaspace":
        found = bool(found) or step["prepend_scheme"] != "never"
      case "Prepend":
        found = True
  return found


def _bert_option(steps: Iterable[Mapping[str, Any]], key: str) -> bool | None:
  """The value of BERT's normalizer for `key`; None if the tokenizer leaves it open."""
  name = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
  steps = list(_flat(steps))
  for step in steps:
    if step.get("type") == "BertNormalizer":
      return step[name.get(key, key)]
  if key != "do_lower_case":
    return None
  return any(step.get("type") == "Lowercase" for step in steps)


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
  """The texts of special tokens by their names, such as `bos_token` and `image_token`.

  Raises:
    InputError: a special token is not text.
  """
  named = {key: value for key, value in config.items() if key.endswith("_token")}
  for key in ("extra_special_tokens", "model_specific_special_tokens"):
    if isinstance(config.get(key), dict):
      named |= config[key]
  texts = {}
  for key, token in named.items():
    text = _token_text(token)
    if token is None or isinstance(token, bool):
      continue
    if not is_text(text):
      raise InputError(f"{key} must be text; got {token!r}.")
    texts[key] = text
  return texts


def is_text(value: Any) -> bool:
  """Whether a JSON value is text that UTF-8 can hold, that is, without lone surrogates."""
  return isinstance(value, str) and value == value.encode("utf-8", "ignore").decode()


def add_tokens(
  backend: tokenizers.Tokenizer, config: Mapping[str, Any], legacy: Mapping[str, Any]
) -> None:
  """Adds the tokens that only tokenizer_config.json or added_tokens.json names.

  Args:
    backend: the tokenizer that gets the tokens, with the flags that tokenizer_config.json gives.
    config: the merged files.
    legacy: content of added_tokens.json, token -> id.

  Raises:
    InputError: a token has another id than the file says, or an entry is no token.
  """
  special = set(named_tokens(config).values())
  for key in ("additional_special_tokens", "extra_special_tokens"):
    tokens = config.get(key)
    special |= {str(_token_text(token)) for token in tokens or [] if not isinstance(tokens, dict)}
  declared = dict[int, tokenizers.AddedToken]()
  for text, index in legacy.items():
    is_special = text in special
    declared[_index(ADDED, index)] = tokenizers.AddedToken(
      text, special=is_special, normalized=not is_special
    )
  for index, entry in (config.get("added_tokens_decoder") or {}).items():
    declared[_index(FILE, index)] = _added_token(entry)
  for index, token in sorted(declared.items()):
    text = token.content
    if backend.token_to_id(text) is None and backend.id_to_token(index) is None:
      with rust_errors(f"the token {text!r} cannot be added", "Copy the files again."):
        backend.add_tokens([token])
    elif token.special or text not in legacy:
      with rust_errors(f"the token {text!r} cannot be added", "Copy the files again."):
        # The token exists; this sets its flags.
        backend.add_tokens([token])
    if backend.token_to_id(text) != index:
      raise InputError(
        f"the token {text!r} should have id {index}, but has {backend.token_to_id(text)} in the "
        f"vocabulary, where {index} is {backend.id_to_token(index)!r}. Copy all tokenizer files "
        "again, from one model."
      )


def _index(file: str, index: Any) -> int:
  try:
    if isinstance(index, bool):
      raise ValueError
    return int(index)
  except (TypeError, ValueError):
    raise InputError(f"{file}: an added token must have a number; got {index!r}.") from None


def _added_token(entry: Any) -> tokenizers.AddedToken:
  if not isinstance(entry, dict) or not is_text(entry.get("content")):
    raise InputError(f"{FILE}: added_tokens_decoder must have tokens with content; got {entry!r}.")
  flags = {flag: entry[flag] for flag in _FLAGS if flag in entry}
  unknown = sorted(entry.keys() - {"content", "__type", *_FLAGS})
  if unknown or not all(isinstance(flag, bool) for flag in flags.values()):
    raise InputError(
      f"{FILE}: an added token has the flags {', '.join(_FLAGS)}, true or false; got {entry!r}."
    )
  return tokenizers.AddedToken(entry["content"], **flags)


def _token_text(token: Any) -> Any:
  return token.get("content") if isinstance(token, dict) else token
