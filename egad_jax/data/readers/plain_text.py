"""The record format `text`: a document of plain text, all of it a target."""

from __future__ import annotations

from typing import Any

from egad_jax.data.readers import records
from egad_jax.data.readers.formats import Fields, RecordFormat
from egad_jax.data.spans import Document, plain


def _parse(record: Any, fields: Fields) -> Document:
  if isinstance(record, str):
    return plain(record)
  return plain(records.string(record, fields["text"]))


FORMAT = RecordFormat(keys=("text",), names=("text",), parse=_parse)
