"""Record formats: the document or conversation of a record, and why there is none."""

from __future__ import annotations

import pytest

from egad_jax.data.readers.formats import Conversation, Fields
from egad_jax.data.readers.records import BadRecord
from egad_jax.data.readers.table import FORMATS
from egad_jax.data.spans import Span

_ASK, _SAY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


def _parse(name, record, **fields):
  return FORMATS[name].parse(record, Fields(fields))


def test_text():
  assert _parse("text", {"text": "a"}) == _parse("text", "a") == (Span("a"),)
  assert _parse("text", {"body": "a"}, text="body") == (Span("a"),)


def test_prompt_and_completion():
  record = {"prompt": "2 + 2 =", "completion": " 4"}
  expected = (Span("2 + 2 =", is_target=False), Span(" 4"))
  assert _parse("prompt_completion", record) == expected
  renamed = {"question": "2 + 2 =", "answer": " 4"}
  fields = {"prompt": "question", "completion": "answer"}
  assert _parse("prompt_completion", renamed, **fields) == expected


def test_a_completion_of_messages_alone_is_the_target():
  record = {"prompt": [_ASK, _SAY, _ASK], "completion": [_SAY]}
  assert _parse("prompt_completion", record) == Conversation([_ASK, _SAY, _ASK, _SAY], None, (3,))
  record = {"prompt": "Hi", "completion": [_SAY]}
  assert _parse("prompt_completion", record) == Conversation([_ASK, _SAY], None, (1,))


def test_messages_keep_what_templates_read():
  call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "weight": None}
  tool = {"role": "tool", "content": "4", "name": "f"}
  record = {"messages": [_ASK, call, tool, _SAY], "tools": '[{"name": "f"}]', "id": 1}
  found = _parse("messages", record)
  called = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
  assert found == Conversation([_ASK, called, tool, _SAY], [{"name": "f"}], (1, 3))


def test_other_names_of_keys_and_roles():
  record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
  expected = Conversation([_ASK, _SAY], None, (1,))
  assert _parse("messages", record) == expected
  named = {"messages": "conversations", "role": "from", "content": "value"}
  assert _parse("messages", record, **named) == expected
  other = {"turns": [{"who": "human", "says": "Hi"}, {"who": "gpt", "says": "Hello."}]}
  assert _parse("messages", other, messages="turns", role="who", content="says") == expected
  # A name that was given is the only one that counts.
  with pytest.raises(BadRecord, match='no messages under "turns"'):
    _parse("messages", record, messages="turns")


def test_a_system_prompt_beside_the_conversation_comes_first():
  system = {"role": "system", "content": "Be brief."}
  record = {"messages": [_ASK, _SAY], "system": "Be brief."}
  assert _parse("messages", record) == Conversation([system, _ASK, _SAY], None, (2,))
  record = {"messages": [system, _ASK, _SAY], "system": "Be long."}
  assert _parse("messages", record) == Conversation([system, _ASK, _SAY], None, (2,))
  assert _parse("messages", {"messages": [_ASK, _SAY], "system": None}).targets == (1,)
  with pytest.raises(BadRecord, match='no string under "system"'):
    _parse("messages", {"messages": [_ASK, _SAY], "system": 3})


def test_alpaca():
  record = {"instruction": "Add.", "input": "2, 2", "output": "4", "system": "Be brief."}
  messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Add.\n\n2, 2"},
    {"role": "assistant", "content": "4"},
  ]
  assert _parse("alpaca", record)[:3] == (messages, None, (2,))
  del record["system"]
  messages[1]["content"] = "Add."
  assert _parse("alpaca", record | {"input": ""})[:3] == (messages[1:], None, (1,))


_INPUT = "### Input:\n2, 2\n\n"


@pytest.mark.parametrize(
  ("more", "first", "given"),
  [
    (
      {"input": "2, 2"},
      "Below is an instruction that describes a task, paired with an input that provides further "
      "context. Write a response that appropriately completes the request.",
      _INPUT,
    ),
    (
      {"input": ""},
      "Below is an instruction that describes a task. Write a response that appropriately "
      "completes the request.",
      "",
    ),
    ({"input": "2, 2", "system": "Be brief."}, "Be brief.", _INPUT),
  ],
)
def test_alpaca_without_a_chat_template(more, first, given):
  found = _parse("alpaca", {"instruction": "Add.", "output": "4"} | more).without_template
  context = f"{first}\n\n### Instruction:\nAdd.\n\n{given}### Response:\n"
  assert found == (Span(context, is_target=False), Span("4"))


@pytest.mark.parametrize(
  ("name", "record", "problem"),
  [
    ("text", 3, 'no string under "text" (found int)'),
    ("text", {"body": "a"}, "found keys ['body']); put the text under \"text\", or name its key"),
    ("prompt_completion", {"prompt": "a"}, 'no string under "completion"'),
    ("prompt_completion", {"prompt": "a", "completion": " \n"}, 'completion" is empty'),
    ("prompt_completion", {"prompt": "a", "completion": [_ASK]}, "no message of the assistant"),
    ("prompt_completion", {"prompt": [_SAY], "completion": [_ASK]}, "no message of the assistant"),
    ("prompt_completion", "plain", "found str"),
    ("messages", "plain", 'no messages under "messages" (found plain text)'),
    ("messages", {"text": "a"}, "found keys ['text']"),
    ("messages", {"messages": []}, "must be a list of objects, and not empty"),
    ("messages", {"messages": "Hi"}, "must be a list of objects"),
    ("messages", {"messages": ["Hi"]}, "message 1 is str, not an object"),
    ("messages", {"messages": [_ASK]}, "no message of the assistant"),
    ("messages", {"messages": [_ASK, {"role": "bot", "content": "a"}]}, 'the unknown role "bot"'),
    ("messages", {"messages": [{"speaker": "user"}]}, "unknown role null"),
    ("messages", {"messages": [{"from": "user"}]}, "message 1 (user) has no content"),
    (
      "messages",
      {"messages": [_ASK, {"role": "assistant"}]},
      "message 2 (assistant) has no content",
    ),
    ("messages", {"messages": [_ASK, _SAY | {"content": " "}]}, "message 2 (assistant) is empty"),
    ("messages", {"messages": [_SAY | {"content": "\ud83d"}]}, "half of a surrogate pair"),
    ("messages", {"messages": [_ASK, _SAY], "tools": "{"}, '"tools" is not valid JSON'),
    ("alpaca", {"instruction": "a"}, 'no string under "output"'),
    ("alpaca", {"instruction": "a", "output": ""}, "is empty"),
    ("alpaca", {"instruction": "a", "input": 3, "output": "b"}, 'no string under "input"'),
  ],
)
def test_records_that_cannot_be_used_say_why(name, record, problem):
  with pytest.raises(BadRecord) as caught:
    _parse(name, record)
  assert problem in str(caught.value)
