"""The record format `messages`: a conversation; the assistant's turns are the targets."""

from __future__ import annotations

import json
from typing import Any

from egad_jax.data.readers import records
from egad_jax.data.readers.formats import (
  Conversation,
  Fields,
  RecordFormat,
  check_messages,
  conversation,
)
from egad_jax.data.readers.records import BadRecord


def _parse(record: Any, fields: Fields) -> Conversation:
  key = fields.key("messages", record) if isinstance(record, dict) else fields["messages"]
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
  messages = check_messages(record[key], fields)
  system = record.get(fields["system"])
  # A prompt beside the conversation is one of the system's, unless the conversation has its own.
  if system and messages[0]["role"] not in ("system", "developer"):
    system = records.string(record, fields["system"])
    messages.insert(0, {"role": "system", "content": system})
  return conversation(messages, tools or None)


FORMAT = RecordFormat(
  keys=("messages",), names=("messages", "role", "content", "tools", "system"), parse=_parse
)
