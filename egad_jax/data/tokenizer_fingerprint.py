"""Fingerprints that tell whether two tokenizers have the same vocabulary, and give the same ids.

The same vocabulary lets student and teacher share their ids; the same ids for every text let packed
rows be used again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from egad_jax.data.token_pieces import is_byte_level

# An option that only affects offsets in the text, and so changes no id.
_NO_PART_OF_IDS = ("trim_offsets",)
_LISTS_OF_STEPS = ("normalizers", "pretokenizers", "decoders")
# Options for which an empty value and null mean the same.
_EMPTY_MEANS_NONE = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def vocabulary_fingerprint(vocabulary: Mapping[str, int], specification: Mapping[str, Any]) -> str:
  """SHA-256 of the token of each id, and of whether tokens are spelled in GPT-2's byte alphabet."""
  return _digest([sorted((i, t) for t, i in vocabulary.items()), is_byte_level(specification)])


def fingerprint(parts: Mapping[str, Any]) -> str:
  """SHA-256 of the parts together, in hexadecimal."""
  return _digest(parts)


def parts(
  vocabulary: Mapping[str, int], specification: Mapping[str, Any], frame: Mapping[str, Any]
) -> dict[str, str]:
  """SHA-256, by name, of each part of a tokenizer that decides which ids a text gets.

  Two spellings of the same part have the same digest: the tokenizers library has already written
  merges as pairs and filled in defaults; this ignores the order of keys, sequences of one step, and
  options that change no id.

  Args:
    vocabulary: token -> id, with added tokens.
    specification: content of tokenizer.json, as the tokenizers library writes it.
    frame: ids that are put around a text, under any names.
  """
  model = {
    key: value or None if key in _EMPTY_MEANS_NONE else value
    for key, value in specification["model"].items()
    if key not in ("vocab", "merges")
  }
  merges = [
    pair if isinstance(pair, str) else " ".join(pair)
    for pair in specification["model"].get("merges") or []
  ]
  scores = specification["model"].get("vocab")
  return {
    "vocabulary": vocabulary_fingerprint(vocabulary, specification),
    "merges": _digest(merges),
    # A dictionary only repeats the vocabulary; a list has scores, which decide the splitting.
    "scores": _digest(scores if isinstance(scores, list) else None),
    "model options": _digest(model),
    "added tokens": _digest(sorted(specification["added_tokens"], key=lambda entry: entry["id"])),
    **{
      name: _digest(_canonical(specification.get(name)))
      for name in ("normalizer", "pre_tokenizer", "decoder")
    },
    "tokens around a text": _digest(frame),
  }


def _canonical(step: Any) -> Any:
  """A normalizer, pre-tokenizer or decoder in its canonical form."""
  if isinstance(step, list):
    return [_canonical(entry) for entry in step]
  if not isinstance(step, dict):
    return step
  if step.get("type") == "Sequence":
    inner: list[Any] = next((step[key] for key in _LISTS_OF_STEPS if key in step), [])
    flat: list[Any] = []
    for entry in map(_canonical, inner):
      flat += entry["steps"] if isinstance(entry, dict) and "steps" in entry else [entry]
    return flat[0] if len(flat) == 1 else ({"steps": flat} if flat else None)
  return {k: _canonical(v) for k, v in step.items() if k not in _NO_PART_OF_IDS}


def _digest(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()
