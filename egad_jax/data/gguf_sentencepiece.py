"""Rebuilds a SentencePiece tokenizer of kind BPE, as Gemma's, from the lists of a GGUF file.

SentencePiece joins the two neighbours whose joined piece has the highest score. The tokenizers
library joins by a list of pairs instead; the list that does the same has every way of cutting a
piece into two others, the pieces of the highest score first.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers

from egad_jax.errors import InputError

# SentencePiece's sign for a space.
_SPACE = "\u2581"
# The number of cuts of a piece is its length; SentencePiece's own limit is 16 unless it is changed.
_LONGEST = 512


class TokenType(enum.IntEnum):
  """Values of `tokenizer.ggml.token_type`, in llama.cpp's numbering."""

  NORMAL = 1
  UNKNOWN = 2
  CONTROL = 3
  USER_DEFINED = 4
  UNUSED = 5
  BYTE = 6


def build(
  tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], *, unknown: int | None
) -> tokenizers.Tokenizer:
  """Builds the tokenizer; it puts no space in front of a text.

  Args:
    tokens: the text of each id; a run of spaces may be spelled with spaces.
    types: `TokenType` of each id.
    scores: score of each id.
    unknown: id of the unknown token; None for none.

  Raises:
    InputError: a piece is too long to be one.
  """
  spelled = [_SPACE * len(t) if t and not t.strip(" ") else t for t in tokens]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: index for index, token in enumerate(spelled)},
      merges=_merges(_pieces(spelled, types, scores)),
      unk_token=None if unknown is None else spelled[unknown],
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
  tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  )
  return tokenizer


def is_run_of_spaces(token: str) -> bool:
  """Whether a token is a run of spaces, which joins find after spaces have become signs."""
  return bool(token) and not token.strip(" " + _SPACE)


def _pieces(
  spelled: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> dict[str, tuple[float, int]]:
  """(rank, id) of each piece that is made by joining; the least rank is joined first."""
  found = {}
  for index, (token, kind) in enumerate(zip(spelled, types, strict=True)):
    if kind == TokenType.NORMAL:
      found[token] = (-scores[index], index)
    elif kind == TokenType.USER_DEFINED and is_run_of_spaces(token):
      # SentencePiece looks for these before it joins anything.
      found[token] = (-float("inf"), index)
  if (longest := max(map(len, found), default=0)) > _LONGEST:
    raise InputError(
      f"tokenizer.ggml.tokens has a piece of {longest} characters; at most {_LONGEST} are read. "
      "The file is damaged: download or convert it again."
    )
  return found


def _merges(pieces: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
  """Every way of cutting a piece into two, the pieces of the lowest rank and id first."""
  merges = []
  for piece in sorted(pieces, key=pieces.__getitem__):
    for at in range(len(piece) - 1, 0, -1):
      left, right = piece[:at], piece[at:]
      if left in pieces and right in pieces:
        merges.append((left, right))
  return merges
