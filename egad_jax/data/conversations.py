"""Renders conversations as documents whose targets are the assistant's turns.

A template with `{% generation %}` blocks says itself what the assistant wrote. For others a turn
begins where the rendering of the messages before it, with the opening of the assistant's turn,
ends, and it ends where the rendering up to it does. Templates that render a message differently
once others follow (thinking left out of earlier turns) are asked again, with a mark in its place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from egad_jax.data.chat import Rendered, Request, render_many
from egad_jax.data.readers.formats import Conversation
from egad_jax.data.spans import Document, Span

# Some templates write the day into the system prompt. Documents must not depend on when they are
# prepared; this is the day that such templates fall back to.
_DATE = "2024-07-26"
_MARK = "\ue000"
_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
# Part of the fingerprint: raise it with any change to the documents.
_VERSION = 1


class Renderer:
  """Makes documents of conversations with a chat template.

  Attributes:
    fingerprint: SHA-256 of all that decides the documents.
  """

  def __init__(self, template: str, special_tokens: Mapping[str, str], spellings: Sequence[str]):
    """Takes over a tokenizer's template.

    Args:
      template: the Jinja source.
      special_tokens: text of each special token by the name that templates use.
      spellings: text of every special token.
    """
    self._template = template
    self._special_tokens = dict(special_tokens)
    self._ends = tuple(filter(None, spellings))
    self._marks_generation = bool(_GENERATION.search(template))
    content = [_VERSION, _DATE, template, self._special_tokens, sorted(self._ends)]
    self.fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

  def render(self, conversations: Sequence[Conversation]) -> list[Document | str]:
    """Renders conversations.

    Returns:
      For each its document, or why there is none.
    """
    if self._marks_generation:
      requests = [Request(c.messages, tools=c.tools) for c in conversations]
      return [
        _problem(found) if isinstance(found, str) else self._generated(one, found)
        for one, found in zip(conversations, self._ask(requests), strict=True)
      ]
    questions = [_questions(one) for one in conversations]
    answers = iter(self._ask([request for group in questions for request in group]))
    return [
      self._document(one, [next(answers) for _ in group])
      for one, group in zip(conversations, questions, strict=True)
    ]

  def _ask(self, requests: Sequence[Request]) -> list[Rendered | str]:
    return render_many(self._template, requests, special_tokens=self._special_tokens, date=_DATE)

  def _generated(self, one: Conversation, found: Rendered) -> Document | str:
    assistant = [i for i, m in enumerate(one.messages) if m["role"] == "assistant"]
    places = found.generated
    if assistant != list(one.targets):
      if len(places) != len(assistant):
        return (
          f"the chat template marks {len(places)} turns as generated, but {len(assistant)} "
          "messages are the assistant's, so that it cannot be known which are the completion"
        )
      places = [place for i, place in zip(assistant, places, strict=True) if i in one.targets]
    return self._split(found.text, [(start, end) for start, end in places])

  def _document(self, one: Conversation, answers: Sequence[Rendered | str]) -> Document | str:
    whole, *others = answers
    if isinstance(whole, str):
      return _problem(whole)
    places = []
    for i, before, after in zip(one.targets, others[::2], others[1::2], strict=True):
      place = self._place(one, i, whole.text, before, after)
      if isinstance(place, str):
        return place
      places.append(place)
    return self._split(whole.text, places)

  def _place(
    self, one: Conversation, i: int, whole: str, before: Rendered | str, after: Rendered | str
  ) -> tuple[int, int] | str:
    """[start, end) of a message in the rendered conversation, or why it is not known."""
    starts = isinstance(before, Rendered) and whole.startswith(before.text)
    ends = isinstance(after, Rendered) and whole.startswith(after.text)
    if starts and ends:
      return len(before.text), len(after.text)  # type: ignore[union-attr] # Both are Rendered.
    marked = [*one.messages]
    marked[i] = {**_bare(marked[i]), "content": _MARK}
    answers = self._ask(
      [Request(messages, tools=one.tools) for messages in (marked, marked[: i + 1])]
    )
    parts = [a.text.split(_MARK) for a in answers if isinstance(a, Rendered)]
    if [len(part) for part in parts] != [2, 2] or not isinstance(one.messages[i]["content"], str):
      return _unclear(i)
    (front, back), (_, closing) = parts
    start = len(before.text) if starts else len(front)  # type: ignore[union-attr]
    end = len(whole) - len(back)
    if not (starts or whole.startswith(front)) or not whole.endswith(back):
      return _unclear(i)
    # The closing of the turn, such as <|im_end|>, is the assistant's too.
    end = len(after.text) if ends else end + _common(closing, back)  # type: ignore[union-attr]
    return (start, end) if start < end else _unclear(i)

  def _split(self, text: str, places: Sequence[tuple[int, int]]) -> Document | str:
    spans, at = [], 0
    for start, end in places:
      target = text[start:end]
      # White space behind the token that ends a turn is never generated: the turn is over.
      if target.rstrip().endswith(self._ends):
        target = target.rstrip()
      if not target.strip() or start < at:
        return "the chat template renders nothing for a message of the assistant"
      spans += [Span(text[at:start], is_target=False, special=True), Span(target, special=True)]
      at = start + len(target)
    if not spans:
      return "the chat template marks nothing as generated"
    spans.append(Span(text[at:], is_target=False, special=True))
    return tuple(span for span in spans if span.text)


def _questions(one: Conversation) -> list[Request]:
  """The whole conversation, and for each target what is before it and what is up to its end."""
  questions = [Request(one.messages, tools=one.tools)]
  for i in one.targets:
    questions += [
      Request(one.messages[:i], add_generation_prompt=True, tools=one.tools),
      Request(one.messages[: i + 1], tools=one.tools),
    ]
  return questions


def _common(a: str, b: str) -> int:
  """Number of characters with which both begin."""
  differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
  return next(differing, min(len(a), len(b)))


def _bare(message: Mapping[str, object]) -> dict[str, object]:
  return {key: value for key, value in message.items() if key in ("role", "name")}


def _problem(reason: str) -> str:
  return f"the tokenizer's chat template cannot render it: {reason}"


def _unclear(i: int) -> str:
  return (
    f"the chat template renders message {i + 1} (assistant) so that its place cannot be found; put "
    "{% generation %} around the assistant's text in the template"
  )
