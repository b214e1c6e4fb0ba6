"""Renders chat templates as Hugging Face does, in a separate, sandboxed process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pathlib
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from egad_jax.errors import InputError

_WORKER = pathlib.Path(__file__).with_name("chat_worker.py")
# The worker ends earlier by its own limit of processor time; this is wall time.
_TIMEOUT_SECONDS = 60.0


def render_chat(
  template: str,
  messages: Sequence[Mapping[str, Any]],
  *,
  add_generation_prompt: bool,
  special_tokens: Mapping[str, str],
) -> str:
  """Renders a conversation with a Jinja chat template.

  Args:
    template: the Jinja source. It comes with a model file, so it runs in a sandbox, in a process
      of its own with 512 MiB of memory and 2 seconds of processor time for each conversation (see
      `chat_worker`). That process is kept for the next conversation.
    messages: `{"role": ..., "content": ...}` of each message, in order.
    add_generation_prompt: whether to end with the opening of the assistant's turn.
    special_tokens: text of each special token by the name that templates use, such as `bos_token`.

  Returns:
    The rendered text, with special tokens written out.

  Raises:
    InputError: the template does not parse, refuses the messages, or exceeds its limits.

  >>> render_chat("{% for m in messages %}<{{ m.role }}>{{ m.content }}\\n{% endfor %}",
  ...             [{"role": "user", "content": "Hi"}],
  ...             add_generation_prompt=False, special_tokens={})
  '<user>Hi\\n'
  """
  request = Request(messages, add_generation_prompt=add_generation_prompt)
  [answer] = render_many(template, [request], special_tokens=special_tokens)
  if isinstance(answer, Rendered):
    return answer.text
  raise InputError(
    f"the tokenizer's chat template cannot render these {len(messages)} messages: {answer}. Check "
    "their roles and order, and where the template comes from."
  )


class Request(NamedTuple):
  """A conversation to be rendered.

  Attributes:
    messages: `{"role": ..., "content": ...}` of each message, in order.
    add_generation_prompt: whether to end with the opening of the assistant's turn.
    tools: descriptions of functions, as the template expects them; None if there are none.
  """

  messages: Sequence[Mapping[str, Any]]
  add_generation_prompt: bool = False
  tools: Any = None


class Rendered(NamedTuple):
  """A rendered conversation.

  Attributes:
    text: the text, with special tokens written out.
    generated: [start, end) in characters of what the template marks with `{% generation %}`.
  """

  text: str
  generated: list[list[int]]


def render_many(
  template: str,
  requests: Sequence[Request],
  *,
  special_tokens: Mapping[str, str],
  date: str = "",
) -> list[Rendered | str]:
  """Renders conversations together, which takes less time than one by one.

  Args:
    template: the Jinja source, as for `render_chat`.
    requests: the conversations.
    special_tokens: text of each special token by the name that templates use.
    date: the day that `strftime_now` gives, as YYYY-MM-DD; "" for now.

  Returns:
    For each request the rendered conversation, or why there is none.
  """
  # As in transformers, these two are defined and null.
  variables: dict[str, Any] = {"tools": None, "documents": None, **special_tokens}
  conversations: list[dict[str, Any]] = [
    {
      "messages": list(request.messages),
      "variables": {
        **variables,
        "tools": request.tools,
        "add_generation_prompt": request.add_generation_prompt,
      },
    }
    for request in requests
  ]
  question = {"template": template, "date": date, "conversations": conversations}
  answers: list[dict[str, Any]] | None
  try:
    # Values of a table may be of types that JSON lacks, such as dates.
    asked = json.dumps(question, default=str).encode()
  except (RecursionError, TypeError, ValueError) as error:
    answers = None if len(requests) > 1 else [{"error": f"it is no JSON ({error})"}]
  else:
    answers = _renderer.ask(asked)
  if answers is None and len(requests) > 1:
    # One of them takes too much; the others need not suffer.
    return [
      answer
      for request in requests
      for answer in render_many(template, [request], special_tokens=special_tokens, date=date)
    ]
  if answers is None:
    return ["it takes too much time or memory"]
  return [
    Rendered(answer["text"], answer["generated"]) if "text" in answer else answer["error"]
    for answer in answers
  ]


class _Renderer:
  """One worker process for all conversations, started when needed and restarted if it died."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._worker: subprocess.Popen[bytes] | None = None
    self._inherited: list[Any] = []

  def ask(self, request: bytes) -> list[dict[str, Any]] | None:
    """The worker's answers, each {"text", "generated"} or {"error"}; None if it gives none."""
    with self._lock:
      worker = self._running()
      deadline = time.monotonic() + _TIMEOUT_SECONDS
      try:
        # The worker reads a request whole before it writes, so that neither waits for the other.
        worker.stdin.write(request + b"\n")  # type: ignore[union-attr] # It is a pipe.
        worker.stdin.flush()  # type: ignore[union-attr]
        return json.loads(_line(worker.stdout, deadline))
      except (OSError, EOFError, TimeoutError):
        self.stop()
        return None
      except BaseException:
        # Otherwise the worker's answer would be taken for that to the next request.
        self.stop()
        raise

  def _running(self) -> subprocess.Popen[bytes]:
    if self._worker is None or self._worker.poll() is not None:
      self.stop()
      # -P: modules beside the script must not shadow those of the same name.
      self._worker = subprocess.Popen(
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
      )
    return self._worker

  def stop(self) -> None:
    """Ends the worker, if there is one."""
    worker, self._worker = self._worker, None
    if worker is None:
      return
    worker.kill()
    for pipe in (worker.stdin, worker.stdout):
      # Closing flushes a request that the dead worker has not read, which fails.
      with contextlib.suppress(OSError):
        pipe.close()  # type: ignore[union-attr]
    worker.wait()

  def forget(self) -> None:
    """Drops worker and lock in a forked child: they belong to the parent."""
    # They are kept alive, because a discarded pipe would write what its buffer holds.
    self._inherited += [self._worker, self._lock]
    self._worker, self._lock = None, threading.Lock()


def _line(pipe: Any, deadline: float) -> bytes:
  """Reads a line, with its newline.

  Args:
    pipe: an open pipe.
    deadline: the latest time, in seconds of `time.monotonic`.

  Raises:
    EOFError: the pipe ends first.
    TimeoutError: the deadline comes first.
  """
  parts: list[bytes] = []
  with selectors.DefaultSelector() as selector:
    selector.register(pipe, selectors.EVENT_READ)
    while not parts or not parts[-1].endswith(b"\n"):
      if not selector.select(max(0.0, deadline - time.monotonic())):
        raise TimeoutError
      parts.append(os.read(pipe.fileno(), 2**20))
      if not parts[-1]:
        raise EOFError
  return b"".join(parts)


_renderer = _Renderer()
atexit.register(_renderer.stop)
os.register_at_fork(after_in_child=_renderer.forget)
