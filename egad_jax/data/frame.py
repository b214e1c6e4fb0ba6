"""The ids that a tokenizer adds around a text, such as beginning and end of sequence."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import tokenizers

from egad_jax.data.rust_errors import rust_errors
from egad_jax.errors import InputError


class Frame(NamedTuple):
  """Ids that the post-processor adds to a text.

  Attributes:
    prefix: ids in front of the text; () for none.
    suffix: ids behind the text; () for none.
  """

  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()


def read_frame(backend: tokenizers.Tokenizer) -> Frame:
  """Finds the ids that a tokenizer's post-processor, of any kind, adds around one text.

  Raises:
    InputError: it does anything else to the text, or its ids are not the vocabulary's.
  """
  if backend.post_processor is None:
    return Frame()
  # The probe's vocabulary turns any text into one token, so the real vocabulary does not matter.
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
  """Replaces a tokenizer's post-processor, so that it adds exactly these ids around every text."""
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
    # ByteLevel only trims the offsets that transformers reports, so it is kept.
    kept = json.loads(before.__getstate__())
    template = {"type": "Sequence", "processors": [kept, template]}
  # The library's constructor takes templates as text, which cannot express every token.
  model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
  made = tokenizers.Tokenizer.from_str(json.dumps({"model": model, "post_processor": template}))
  backend.post_processor = made.post_processor
