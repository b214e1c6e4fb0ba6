"""Chat templates, rendered the way Hugging Face renders them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

from egad_jax.errors import InputError


def render_chat(
  template: str,
  messages: Sequence[Mapping[str, Any]],
  *,
  add_generation_prompt: bool,
  special_tokens: Mapping[str, str],
) -> str:
  """Renders a conversation with a Jinja chat template.

  Args:
    template: the Jinja source. It comes with a model file, so it runs in a sandbox.
    messages: `{"role": ..., "content": ...}` in order.
    add_generation_prompt: whether to end with the opening of the assistant's turn.
    special_tokens: names the template may use, such as `bos_token`, with their text.

  Returns:
    The text, special tokens written out.

  Raises:
    InputError: if the template does not parse, or refuses the messages.

  >>> render_chat("{% for m in messages %}<{{ m.role }}>{{ m.content }}\\n{% endfor %}",
  ...             [{"role": "user", "content": "Hi"}],
  ...             add_generation_prompt=False, special_tokens={})
  '<user>Hi\\n'
  """
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _refuse
  environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
  try:
    return environment.from_string(template).render(
      messages=messages, add_generation_prompt=add_generation_prompt, **special_tokens
    )
  # TypeError is what a template's own arithmetic on a missing or odd field ends in.
  except (jinja2.TemplateError, TypeError) as error:
    raise InputError(
      f"the tokenizer's chat template cannot render these {len(messages)} messages: {error}. "
      "Check their roles and order."
    ) from error


def _to_json(value: Any, indent: int | None = None) -> str:
  # Jinja's own filter escapes <, > and & for HTML, which would change what the model reads.
  return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)
