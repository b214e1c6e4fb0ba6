"""Two questions about two tokenizers: do the same ids mean the same, and does a text get the same?

The first decides whether student and teacher may share one vocabulary, the second whether packed
rows may be used again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from egad_jax.data.token_pieces import is_byte_level

# Where in the text a token lies changes no id; nor do the decoder's copies of the options.
_NO_PART_OF_IDS = ("trim_offsets",)
_LISTS_OF_STEPS = ("normalizers", "pretokenizers", "decoders")
# Both spellings mean that there is none.
_EMPTY_MEANS_NONE = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")


def vocabulary_fingerprint(vocabulary: Mapping[str, int], specification: Mapping[str, Any]) -> str:
  """SHA-256 of what each id means: its token, and whether tokens are spelled as bytes."""
  return _digest([sorted((i, t) for t, i in vocabulary.items()), is_byte_level(specification)])


def fingerprint(parts: Mapping[str, Any]) -> str:
  """SHA-256 of `parts`."""
  return _digest(parts)


def parts(
  vocabulary: Mapping[str, int], specification: Mapping[str, Any], frame: Mapping[str, Any]
) -> dict[str, str]:
  """The SHA-256 of each part of a tokenizer that decides which ids a text gets, by its name.

  Two spellings of the same part have the same: the tokenizers library has already written merges
  as pairs and filled in defaults; here the order of keys, sequences of one step, and options that
  change no id go.

  Args:
    vocabulary: token to id, added tokens too.
    specification: what tokenizer.json says, as the tokenizers library writes it.
    frame: what is put around a text, by names of one's own.
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
    # A dictionary repeats the vocabulary; a list has scores, which decide the splitting.
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
  """A normalizer, pre-tokenizer or decoder in one spelling."""
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
