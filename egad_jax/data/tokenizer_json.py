"""Loads tokenizer.json, a closed format: a file with a key that is not read is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import tokenizers
from etils import epath

from egad_jax.data.rust_errors import rust_errors
from egad_jax.data.text_files import read_text
from egad_jax.errors import InputError
from egad_jax.files.json_file import parse_json

_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_TOP = ("version", "truncation", "padding", "added_tokens", "model", *_STEPS)
# Limit on ids, because tables and lists have a row for each.
_MAX_IDS = 2**24
# Limit on the factor by which replacements of a normalizer and a decoder may lengthen a text.
_MAX_GROWTH = 256
# Keys of earlier versions, which the library translates, and one that it has never read.
_LEGACY = {"add_prefix_space", "str_rep", "max_input_chars_per_word"}
# Tables that `_check_added` or the library itself checks.
_TABLES = ("vocab", "merges", "special_tokens")
_REMEDY = (
  "It could change how text is split. Save the tokenizer again with transformers, or correct the "
  "file."
)


def load(path: epath.Path) -> tokenizers.Tokenizer:
  """Loads tokenizer.json with truncation and padding off.

  The tokenizers library writes again what it has read: a key of the file that is missing then was
  not read, and a step whose type differs then was misread.

  Raises:
    InputError: the file is unreadable, or holds something that the library does not read.
  """
  text = read_text(path)
  content = parse_json(path, text.encode())
  for key in sorted(content.keys() - set(_TOP)):
    raise InputError(f"{path}: the key {key!r} is not known here. {_REMEDY}")
  with rust_errors(f"{path}: not a readable tokenizer", "Copy the file again."):
    try:
      backend = tokenizers.Tokenizer.from_str(text)
    except Exception:
      _name_unknown_kind(path, content)
      raise
    # Left on, these would cut or pad documents silently.
    backend.no_truncation()
    backend.no_padding()
  try:
    check_ids(backend.get_vocab(with_added_tokens=True))
  except InputError as error:
    raise InputError(f"{path}: {error}") from error
  with rust_errors(f"{path}: cannot be copied", "Copy the file again."):
    # After `check_ids`, because this takes memory for each id below the largest.
    written = json.loads(backend.to_str())
  for key in (*_STEPS, "model"):
    _compare(f"{path}: {key}", content.get(key), written[key])
  _check_added(path, content.get("added_tokens") or [], written["added_tokens"])
  return backend


def check_ids(vocabulary: Mapping[str, int]) -> None:
  """Checks that each token has an id of its own, below 2**24, which no vocabulary comes near.

  Args:
    vocabulary: token -> id.

  Raises:
    InputError: two tokens share an id, an id is too large, or there is no token.
  """
  if len(set(vocabulary.values())) < len(vocabulary):
    raise InputError(
      f"the tokenizer gives {len(vocabulary)} tokens {len(set(vocabulary.values()))} ids; each "
      "must have one of its own. Copy its files again."
    )
  largest = max(vocabulary.values(), default=None)
  if largest is None or largest >= _MAX_IDS:
    raise InputError(
      f"the tokenizer must have ids from 0 to at most {_MAX_IDS - 1}; its largest is {largest}. "
      "Copy its files again."
    )


def check_steps(specification: Mapping[str, Any]) -> None:
  """Checks that encoding is deterministic and that no step makes a text much longer.

  Args:
    specification: the content of tokenizer.json as the library writes it.

  Raises:
    InputError: the model drops merges by chance, or replacements lengthen a text too much.
  """
  if specification["model"].get("dropout"):
    raise InputError(
      "the tokenizer drops merges by chance (dropout in its model), so that no run could be "
      "repeated. Set dropout to null in tokenizer.json."
    )
  growth = _growth(specification.get("normalizer")) * _growth(specification.get("decoder"))
  if growth > _MAX_GROWTH:
    raise InputError(
      f"the tokenizer's Replace and Prepend steps may make a text {growth} times longer; at most "
      f"{_MAX_GROWTH} times is allowed. Copy its files again."
    )


def _growth(step: Any) -> int:
  """The most that a normalizer's or decoder's replacements may multiply a text's length by."""
  if not isinstance(step, dict):
    return 1
  inner = step.get("normalizers") or step.get("decoders") or []
  return math.prod(map(_growth, inner)) * max(
    1, len(step.get("content") or step.get("prepend") or "")
  )


def _compare(where: str, stored: Any, read: Any) -> None:
  """Refuses keys that are stored but not read, and steps whose type was misread."""
  if isinstance(stored, list) and isinstance(read, list):
    for index, entries in enumerate(zip(stored, read, strict=False)):
      _compare(f"{where}[{index}]", *entries)
  if not (isinstance(stored, dict) and isinstance(read, dict)):
    return
  if stored.get("type", read.get("type")) != read.get("type"):
    raise InputError(f"{where}: the kind {stored['type']!r} is not known here. {_REMEDY}")
  for key, value in stored.items():
    if key in read:
      if key not in _TABLES:
        _compare(f"{where}.{key}", value, read[key])
    elif value is not None and key not in _LEGACY:
      raise InputError(f"{where}: the key {key!r} is not known here. {_REMEDY}")


def _check_added(path: epath.Path, stored: list[dict[str, Any]], read: list[Any]) -> None:
  found = {entry["content"]: entry for entry in read}
  for entry in stored:
    got = found.get(entry["content"])
    if got is None or got["id"] != entry["id"]:
      raise InputError(
        f"{path}: the added token {entry['content']!r} says id {entry['id']}, but the vocabulary "
        f"gives it {got and got['id']}. Copy the file again."
      )
    for key in sorted(entry.keys() - got.keys()):
      raise InputError(f"{path}: the key {key!r} of an added token is not known here. {_REMEDY}")


def _name_unknown_kind(path: epath.Path, content: dict[str, Any]) -> None:
  """Names the step that the library does not know; its own message only gives a line of the file.

  Raises:
    InputError: a step has an unknown type.
  """
  model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
  for key in _STEPS:
    for step in _steps(content.get(key)):
      try:
        tokenizers.Tokenizer.from_str(json.dumps({"model": model, key: step}))
      except Exception as error:
        raise InputError(
          f"{path}: {key}: the kind {step.get('type')!r} cannot be read ({error}). {_REMEDY}"
        ) from error


def _steps(step: Any) -> list[dict[str, Any]]:
  """The steps of a sequence, flattened; a single step is a sequence of one."""
  if not isinstance(step, dict):
    return []
  for key in ("normalizers", "pretokenizers", "processors", "decoders"):
    if isinstance(step.get(key), list):
      return [inner for entry in step[key] for inner in _steps(entry)]
  return [step]
