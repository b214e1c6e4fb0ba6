"""Record formats share this: a conversation to be rendered, and the names of a record's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from egad_jax.data.readers.records import BadRecord, check_text, shown
from egad_jax.data.spans import Document


class Conversation(NamedTuple):
  """Messages that a chat template is to render.

  Attributes:
    messages: objects with "role", "content" and whatever else the template reads.
    tools: descriptions of functions for the template; None if there are none.
    targets: indices of the messages on which the loss is taken.
    without_template: the document to take if the tokenizer has no chat template; None if the format
      has no template of its own.
  """

  messages: list[dict[str, Any]]
  tools: Any
  targets: tuple[int, ...]
  without_template: Document | None = None


# Further keys under which records have a value, as data sets in ShareGPT's layout do.
_OTHER_KEYS = {"messages": "conversations", "role": "from", "content": "value"}


class Fields:
  """The key under which a record has each of the values that a format reads."""

  def __init__(self, names: Mapping[str, str] | None = None) -> None:
    self._names = dict(names or {})

  def __getitem__(self, name: str) -> str:
    return self._names.get(name, name)

  def key(self, name: str, record: Mapping[str, Any]) -> str:
    """The key of a value in this record: the name that was given, else one of the usual ones."""
    other = _OTHER_KEYS.get(name)
    if other is not None and other in record and name not in (*self._names, *record):
      return other
    return self[name]


class RecordFormat(NamedTuple):
  """A format of records.

  Attributes:
    keys: the values that tell it from others: a record with all their keys is of this format.
    names: all the values that it reads, which data.fields may rename.
    parse: `(record, fields)` -> the document, or a conversation to be rendered. It raises
      `BadRecord`.
  """

  keys: tuple[str, ...]
  names: tuple[str, ...]
  parse: Callable[[Any, Fields], Document | Conversation]


def check_messages(messages: Any, fields: Fields) -> list[dict[str, Any]]:
  """A record's messages with the usual keys and roles, without null values.

  Raises:
    BadRecord: it is no list of objects, a role is unknown, or a content cannot be rendered.
  """
  if not isinstance(messages, list) or not messages:
    raise BadRecord(f"messages must be a list of objects, and not empty; found {shown(messages)}")
  return [_message(number, message, fields) for number, message in enumerate(messages, start=1)]


# Roles that templates know, and what other programs call them.
_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")}
_ROLES |= {"human": "user", "gpt": "assistant", "model": "assistant"}
_ROLES |= {"function": "tool", "ipython": "tool", "observation": "tool"}


def _message(number: int, message: Any, fields: Fields) -> dict[str, Any]:
  if not isinstance(message, dict):
    raise BadRecord(f"message {number} is {type(message).__name__}, not an object")
  role_key, content_key = fields.key("role", message), fields.key("content", message)
  role = message.get(role_key)
  if not isinstance(role, str) or role not in _ROLES:
    raise BadRecord(
      f'message {number} has the unknown role {shown(role)} under "{role_key}"; '
      "expected system, developer, user, assistant or tool"
    )
  role, content = _ROLES[role], message.get(content_key)
  if isinstance(content, str):
    check_text(content)
  elif content is None and not message.get("tool_calls"):
    raise BadRecord(f'message {number} ({role}) has no content under "{content_key}"')
  rest = {
    key: value
    for key, value in message.items()
    if value is not None and key not in (role_key, content_key)
  }
  return {"role": role, "content": "" if content is None else content, **rest}


def conversation(messages: list[dict[str, Any]], tools: Any = None) -> Conversation:
  """A conversation whose targets are the assistant's messages.

  Raises:
    BadRecord: there are none, or one of them is empty.
  """
  targets = tuple(i for i, m in enumerate(messages) if m["role"] == "assistant")
  if not targets:
    raise BadRecord("no message of the assistant, so that nothing would be learnt")
  for i in targets:
    empty = isinstance(messages[i]["content"], str) and not messages[i]["content"].strip()
    if empty and not messages[i].get("tool_calls"):
      raise BadRecord(f"message {i + 1} (assistant) is empty, so that nothing would be learnt")
  return Conversation(messages, tools, targets)
