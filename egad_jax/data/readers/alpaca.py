"""The record format `alpaca`: instruction, input and output, rendered as two messages.

Where the tokenizer has no chat template, the record is rendered by the template that Stanford's
Alpaca was published with, with the line feed behind "### Response:" that later programs add.
"""

from __future__ import annotations

from typing import Any

from egad_jax.data.readers import records
from egad_jax.data.readers.formats import Conversation, Fields, RecordFormat, conversation
from egad_jax.data.readers.records import BadRecord
from egad_jax.data.spans import Document, Span

_TASK = (
  "Below is an instruction that describes a task. Write a response that appropriately completes "
  "the request."
)
_TASK_WITH_INPUT = (
  "Below is an instruction that describes a task, paired with an input that provides further "
  "context. Write a response that appropriately completes the request."
)


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
  document = _plain(system, instruction, given, output)
  return conversation(messages)._replace(without_template=document)


def _plain(system: str, instruction: str, given: str, output: str) -> Document:
  """The record in Alpaca's own template, in which a system prompt replaces the first paragraph."""
  parts = [system or (_TASK_WITH_INPUT if given else _TASK), f"### Instruction:\n{instruction}"]
  if given:
    parts.append(f"### Input:\n{given}")
  context = "\n\n".join([*parts, "### Response:\n"])
  return (Span(context, is_target=False), Span(output))


FORMAT = RecordFormat(
  keys=("instruction", "output"),
  names=("instruction", "input", "output", "system"),
  parse=_parse,
)
