"""The bytes of text that each id stands for, however the vocabulary spells them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def token_pieces(token_of: Mapping[int, str], specification: Mapping[str, Any]) -> list[bytes]:
  """The bytes of each id, [largest id + 1]; empty for special tokens and ids without a token.

  Args:
    token_of: the vocabulary's spelling of each id, not empty.
    specification: content of tokenizer.json, as the tokenizers library writes it.
  """
  pieces = [b""] * (max(token_of) + 1)
  byte_level = is_byte_level(specification)
  added = {entry["id"]: entry for entry in specification["added_tokens"]}
  for index, token in token_of.items():
    if index in added:
      pieces[index] = b"" if added[index]["special"] else token.encode()
    else:
      pieces[index] = _byte_level_piece(token) if byte_level else _sentencepiece_piece(token)
  return pieces


def is_byte_level(specification: Mapping[str, Any]) -> bool:
  """Whether tokens are spelled in GPT-2's byte alphabet, by the decoder in `specification`."""
  return "ByteLevel" in json.dumps(specification.get("decoder"))


def _byte_alphabet() -> dict[str, int]:
  """GPT-2's byte alphabet: printable bytes are themselves, the others are code points from 256."""
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  spelled = {chr(byte): byte for byte in printable}
  return spelled | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level_piece(token: str) -> bytes:
  # Only an added token that is not marked as such has characters outside the byte alphabet.
  return b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode() for c in token)


def _sentencepiece_piece(token: str) -> bytes:
  if re.fullmatch("<0x[0-9A-F]{2}>", token):
    return bytes([int(token[3:5], 16)])
  return token.replace("▁", " ").encode()
