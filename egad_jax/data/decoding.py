"""Turns ids into text in their context.

Decoders depend on neighbours: SentencePiece's strip the first space of their input, and a character
may be spread over several tokens. So the text of ids is always a difference of two decodings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Decoders write this for bytes that are no whole character.
_INCOMPLETE = "\ufffd"
# The most bytes of a character in UTF-8; each may be a token of its own.
_LONGEST = 4

Decode = Callable[[Sequence[int]], str]


def continuation(decode: Decode, context: Sequence[int], new: Sequence[int]) -> str:
  """The text that `new` adds to the text of `context`.

  The two texts concatenate to the whole, unless the context ends inside a character: then this text
  begins with that character, whole. A character that `new` begins but does not complete becomes one
  U+FFFD.

  Args:
    decode: turns ids into text.
    context: ids in front.
    new: ids whose text is wanted.
  """
  before = decode(context)
  for dropped in range(min(_LONGEST, len(new) + 1)):
    # Some decoders drop a whole run of bytes if one of its characters is incomplete.
    whole = decode([*context, *new[: len(new) - dropped]])
    ending = _INCOMPLETE * bool(dropped)
    if whole.startswith(before):
      return whole[len(before) :] + ending
    if before.endswith(_INCOMPLETE):
      return whole[_equal(before.rstrip(_INCOMPLETE), whole) :] + ending
  whole = decode([*context, *new])
  return whole[_equal(before, whole) :]


def token_texts(decode: Decode, ids: Sequence[int]) -> list[str]:
  """The text that each id adds to the ids before it; they concatenate to the text of all.

  A character whose bytes are spread over several tokens is in the text of the token that completes
  it; its other tokens have less text or none.
  """
  texts, shown = [], ""
  for count in range(1, len(ids) + 1):
    whole = decode(ids[:count])
    if count < len(ids):
      # An incomplete character is left out until later tokens complete it, or do not.
      whole = whole.rstrip(_INCOMPLETE)
      if shown.startswith(whole):
        texts.append("")
        continue
    # A decoder may revise its earlier text, so that `whole` does not begin with `shown`.
    texts.append(whole[_equal(shown, whole) :])
    shown = whole
  return texts


def _equal(a: str, b: str) -> int:
  """The number of characters that are equal from the start."""
  differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
  return next(differing, min(len(a), len(b)))
