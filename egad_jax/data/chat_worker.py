"""Renders chat templates in a process of its own: a script that `chat` starts.

A template comes with a model file. Jinja's sandbox keeps it from Python's internals; the limits of
this process keep it from endless loops and huge strings.

Each line of standard input is a request in JSON, `{"template", "date", "conversations":
[{"messages", "variables"}]}`; each line of standard output answers one by a list of `{"text",
"generated"}` or `{"error"}`. The process ends with its standard input, with the process that
started it, and when a conversation takes too much time.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

_MAX_BYTES = 2**29
_MAX_SECONDS = 2.0
_MAX_CHARACTERS = 2**24
_SECONDS_BETWEEN_LOOKS_AT_PARENT = 5.0
# Keys of a message's reasoning; most templates read the first, that of gpt-oss the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Written:
  """What a template has written so far, and which of it is inside `{% generation %}`."""

  def __init__(self) -> None:
    self.blocks: list[str] = []
    self.generated: list[list[int]] = []


_written = _Written()


class _Generation(jinja2.ext.Extension):
  """`{% generation %}` marks the assistant's text for training; it renders as its content."""

  tags = {"generation"}  # noqa: RUF012 # Declared so by Jinja.

  def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    # A block call, so that names set inside are local to it, as in transformers.
    call = self.call_method("_inside")
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _inside(self, caller: Callable[[], str]) -> str:
    text = caller()
    # As in transformers: all that was written before is in the blocks.
    start = sum(map(len, _written.blocks))
    _written.generated.append([start, start + len(text)])
    return text


class _Dict:
  """The `dict` that templates see, without the attributes of Python's."""

  def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)

  def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
  """Jinja's `namespace`; as in transformers, it refuses names that begin with an underscore."""

  def __init__(*args: Any, **kwargs: Any) -> None:  # A template may use the name `self`.
    self, *rest = args
    values = dict(*rest, **kwargs)
    for name in values:
      _check_name(name)
    jinja2.utils.Namespace.__init__(self, values)

  def __setitem__(self, name: str, value: Any) -> None:
    _check_name(name)
    super().__setitem__(name, value)


def _check_name(name: Any) -> None:
  if isinstance(name, str) and name.startswith("_"):
    raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def render(template: str, date: str, conversation: Mapping[str, Any]) -> dict[str, Any]:
  """Renders a conversation.

  Args:
    template: the Jinja source.
    date: the day that `strftime_now` gives, as YYYY-MM-DD; "" for now.
    conversation: a list of "messages", and further "variables" by name.

  Returns:
    The rendered "text" and what of it was "generated", or the reason as "error".
  """
  global _written  # noqa: PLW0603 # Extensions of Jinja are given nothing but the environment.
  _written = _Written()
  try:
    blocks = _compiled(template, date).generate(
      messages=list(map(_message, conversation["messages"])), **conversation["variables"]
    )
    for block in blocks:
      _written.blocks.append(block)
    text = "".join(_written.blocks)
    if len(text) > _MAX_CHARACTERS:
      return {"error": f"it makes {len(text)} characters of them"}
    text.encode()
    return {"text": text, "generated": _written.generated}
  except MemoryError:
    return {"error": "it needs too much memory"}
  # A template's arithmetic, calls and recursion can raise any of Python's errors.
  except Exception as error:
    return {"error": str(error) or type(error).__name__}


@functools.lru_cache(8)
def _compiled(source: str, date: str) -> jinja2.Template:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  environment.filters["tojson"] = _to_json
  environment.globals |= {
    "raise_exception": _refuse,
    "strftime_now": lambda layout: _time(date).strftime(layout),
    "dict": _Dict(),
    "namespace": _Namespace,
  }
  return environment.from_string(source)


def _time(date: str) -> datetime.datetime:
  return datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
  """A message as transformers passes it to templates: without nulls, reasoning under both keys."""
  message = {key: value for key, value in message.items() if value is not None}
  reasoning = next((message[key] for key in _REASONING if key in message), None)
  if reasoning is None:
    return message
  return {"thinking": reasoning} | message | {"reasoning_content": reasoning}


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  # Jinja's own filter escapes <, > and & for HTML, which would change what the model reads.
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def _requests() -> Iterator[bytes]:
  """Yields the lines of standard input, until it or the parent process ends."""
  parent, rest = os.getppid(), b""
  while True:
    # A fork of the parent may hold the other end open after the parent has ended.
    ready, _, _ = select.select([0], [], [], _SECONDS_BETWEEN_LOOKS_AT_PARENT)
    if os.getppid() != parent:
      return
    if not ready:
      continue
    data = os.read(0, 2**20)
    if not data:
      return
    *lines, rest = (rest + data).split(b"\n")
    yield from lines


def main() -> None:
  """Answers requests until standard input or the parent process ends."""
  # Ctrl-C is meant for the parent process.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
  for line in _requests():
    request, answers = json.loads(line), []
    for conversation in request["conversations"]:
      # SIGPROF, sent after this much processor time, ends the process whatever it is doing.
      signal.setitimer(signal.ITIMER_PROF, _MAX_SECONDS)
      answers.append(render(request["template"], request["date"], conversation))
    answer = json.dumps(answers)
    signal.setitimer(signal.ITIMER_PROF, 0)
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
  main()
