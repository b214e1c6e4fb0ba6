"""Turning ids into text in their context.

Decoders look at neighbours: SentencePiece's strip the first space of what they get, and a
character may be spread over tokens. So the text of ids is always a difference of two decodings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What a decoder writes for bytes that are no whole character.
_INCOMPLETE = "\ufffd"
# A character of UTF-8 has at most so many bytes, one a token.
_LONGEST = 4

Decode = Callable[[Sequence[int]], str]


def continuation(decode: Decode, context: Sequence[int], new: Sequence[int]) -> str:
  """The text that `new` adds to what `context` says.

  The two texts concatenate to the whole, unless the context ends inside a character: then that
  character, whole, is at the beginning here. A character that `new` begins and does not end is one
  U+FFFD.
  """
  before = decode(context)
  for dropped in range(min(_LONGEST, len(new) + 1)):
    # Some decoders give up on all bytes in a row where one character is not whole.
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

  A character whose bytes are spread over tokens is at the token that completes it, and the others
  of its tokens have less text or none.
  """
  texts, shown = [], ""
  for count in range(1, len(ids) + 1):
    whole = decode(ids[:count])
    if count < len(ids):
      # Bytes of a character to come; they are shown when it has come, or has not.
      whole = whole.rstrip(_INCOMPLETE)
      if shown.startswith(whole):
        texts.append("")
        continue
    # A decoder that takes back what it has written leaves less than what was shown.
    texts.append(whole[_equal(shown, whole) :])
    shown = whole
  return texts


def _equal(a: str, b: str) -> int:
  """How many characters are equal from the start."""
  differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
  return next(differing, min(len(a), len(b)))
