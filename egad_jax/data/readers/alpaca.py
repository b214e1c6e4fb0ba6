"""The record format `alpaca`: instruction, input and output, rendered as two messages."""

from __future__ import annotations

from typing import Any

from egad_jax.data.readers import records
from egad_jax.data.readers.formats import Conversation, Fields, RecordFormat, conversation
from egad_jax.data.readers.records import BadRecord


def _parse(record: Any, fields: Fields) -> Conversation:
  instruction = records.string(record, fields["instruction"])
  output = records.string(record, fields["output"])
  if not output.strip():
    raise BadRecord(f'the completion under "{fields["output"]}" is empty')
  given = records.string(record, fields["input"]) if record.get(fields["input"]) else ""
  system = records.string(record, fields["system"]) if record.get(fields["system"]) else ""
  messages = [{"role": "system", "content": system}] * bool(system)
  # A blank line between them, as other programs that use the model's own template put it.
  user = "\n\n".join(filter(None, (instruction, given)))
  messages += [{"role": "user", "content": user}, {"role": "assistant", "content": output}]
  return conversation(messages)


FORMAT = RecordFormat(
  keys=("instruction", "output"),
  names=("instruction", "input", "output", "system"),
  parse=_parse,
)
