"""The record format `messages`: a conversation; the assistant's turns are the targets."""

from __future__ import annotations

import json
from typing import Any

from egad_jax.data.readers.formats import (
  Conversation,
  Fields,
  RecordFormat,
  check_messages,
  conversation,
)
from egad_jax.data.readers.records import BadRecord


def _parse(record: Any, fields: Fields) -> Conversation:
  key = fields["messages"]
  if not isinstance(record, dict) or key not in record:
    found = f"keys {sorted(map(str, record))}" if isinstance(record, dict) else "plain text"
    raise BadRecord(
      f'no messages under "{key}" (found {found}); put the conversation there, or name its key in '
      "data.fields"
    )
  tools = record.get(fields["tools"])
  if isinstance(tools, str):  # Tables have no type for any JSON, so that it is stored as text.
    try:
      tools = json.loads(tools)
    except ValueError as error:
      raise BadRecord(f'"{fields["tools"]}" is not valid JSON ({error})') from error
  return conversation(check_messages(record[key], fields), tools or None)


FORMAT = RecordFormat(
  keys=("messages",), names=("messages", "role", "content", "tools"), parse=_parse
)
