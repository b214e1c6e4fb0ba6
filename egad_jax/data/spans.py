"""Documents as spans of text, and their form on disk.

Readers make documents, the corpus stores them, `Tokenizer.encode_document` turns them into ids and
targets, and packing sees only those.
"""

from __future__ import annotations

import json
from typing import NamedTuple


class Span(NamedTuple):
  """A stretch of a document's text.

  Attributes:
    text: the text; may be empty.
    is_target: whether the loss is taken on the tokens of this text. All tokens are context.
    special: whether the spelling of a special token in the text, such as `<|im_end|>`, becomes that
      token, as in a rendered chat. In plain text it stays text.
  """

  text: str
  is_target: bool = True
  special: bool = False


Document = tuple[Span, ...]
# First byte of a stored document: one span of plain text that is a target, or JSON of all spans.
_PLAIN, _SPANS = b"\x00", b"\x01"


def plain(text: str) -> Document:
  """A document of plain text, all of it a target."""
  return (Span(text),)


def text_of(document: Document) -> str:
  """The whole text of a document.

  >>> text_of((Span("2 + 2 =", is_target=False), Span(" 4")))
  '2 + 2 = 4'
  """
  return document[0].text if len(document) == 1 else "".join(span.text for span in document)


def has_target(document: Document) -> bool:
  """Whether any text of a document is a target."""
  return any(span.is_target and span.text for span in document)


def dump(document: Document) -> bytes:
  """A document as bytes, which `load` reads."""
  if len(document) == 1 and document[0].is_target and not document[0].special:
    return _PLAIN + document[0].text.encode()
  return _SPANS + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def load(record: bytes) -> Document:
  """The document of bytes from `dump`.

  >>> load(dump(plain("é")))
  (Span(text='é', is_target=True, special=False),)
  """
  if record[:1] == _PLAIN:
    return (Span(record[1:].decode()),)
  return tuple(Span(*fields) for fields in json.loads(record[1:]))
