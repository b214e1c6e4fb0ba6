"""The record format `prompt_completion`: the completion is the target."""

from __future__ import annotations

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
from egad_jax.data.spans import Document, Span


def _parse(record: Any, fields: Fields) -> Document | Conversation:
  prompt, completion = fields["prompt"], fields["completion"]
  if isinstance(record, dict) and isinstance(record.get(completion), list):
    return _conversation(record, prompt, completion, fields)
  context = records.string(record, prompt)
  target = records.string(record, completion)
  if not target.strip():
    raise BadRecord(f'the completion under "{completion}" is empty')
  return (Span(context, is_target=False), Span(target))


def _conversation(
  record: dict[str, Any], prompt: str, completion: str, fields: Fields
) -> Conversation:
  context = record.get(prompt)
  if isinstance(context, str):
    context = [{fields["role"]: "user", fields["content"]: context}]
  before = check_messages(context, fields)
  after = check_messages(record[completion], fields)
  found = conversation(before + after, record.get("tools"))
  targets = tuple(i for i in found.targets if i >= len(before))
  if not targets:
    raise BadRecord(f'no message of the assistant under "{completion}"')
  return found._replace(targets=targets)


FORMAT = RecordFormat(
  keys=("prompt", "completion"),
  names=("prompt", "completion", "role", "content"),
  parse=_parse,
)
