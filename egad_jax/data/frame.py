"""What a tokenizer puts around a text: the beginning of sequence in front, an end behind."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import tokenizers

from egad_jax.data.rust_errors import rust_errors
from egad_jax.errors import InputError


class Frame(NamedTuple):
  """Ids that the post-processor puts in front of a text and behind it."""

  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()


def read_frame(backend: tokenizers.Tokenizer) -> Frame:
  """Finds what a tokenizer's post-processor puts around one text, whatever its kind.

  Raises:
    InputError: if it does anything else to the text, or has other ids than the vocabulary.
  """
  if backend.post_processor is None:
    return Frame()
  # A vocabulary of one word stands for any text, so that nothing depends on what the real one has.
  probe = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
  with rust_errors("the tokenizer's post_processor cannot be used", "Copy tokenizer.json again."):
    probe.post_processor = backend.post_processor
    encoding = probe.encode("a", add_special_tokens=True)
  places = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
  if len(places) != 1 or encoding.ids[places[0]] != 0:
    raise InputError(
      f"the post_processor of tokenizer.json makes {encoding.tokens} of a text 'a'; only tokens in "
      "front of the text and behind it are supported. Correct post_processor.single."
    )
  for place, (token, index) in enumerate(zip(encoding.tokens, encoding.ids, strict=True)):
    if place != places[0] and backend.token_to_id(token) != index:
      raise InputError(
        f"the post_processor of tokenizer.json puts {token!r} as id {index}, but the vocabulary "
        f"has it as {backend.token_to_id(token)}. Correct post_processor.special_tokens."
      )
  return Frame(tuple(encoding.ids[: places[0]]), tuple(encoding.ids[places[0] + 1 :]))


def set_frame(backend: tokenizers.Tokenizer, frame: Frame) -> None:
  """Makes a tokenizer put these ids around every text, and nothing else."""
  prefix, suffix = ([(backend.id_to_token(i), i) for i in side] for side in frame)

  def around(*sequences: dict[str, Any]) -> list[dict[str, Any]]:
    special = lambda side, kind: [
      {"SpecialToken": {"id": token, "type_id": kind}} for token, _ in side
    ]
    return [
      step
      for kind, sequence in enumerate(sequences)
      for step in (*special(prefix, kind), {"Sequence": sequence}, *special(suffix, kind))
    ]

  first, second = {"id": "A", "type_id": 0}, {"id": "B", "type_id": 1}
  template = {
    "type": "TemplateProcessing",
    "single": around(first),
    "pair": around(first, second),
    "special_tokens": {
      token: {"id": token, "ids": [index], "tokens": [token]} for token, index in prefix + suffix
    },
  }
  before = backend.post_processor
  if isinstance(before, tokenizers.processors.ByteLevel):
    # It only trims the places in the text that transformers reports.
    kept = json.loads(before.__getstate__())
    template = {"type": "Sequence", "processors": [kept, template]}
  # The templates of the library's own constructor are text, in which a token may not be spelled.
  model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
  made = tokenizers.Tokenizer.from_str(json.dumps({"model": model, "post_processor": template}))
  backend.post_processor = made.post_processor
