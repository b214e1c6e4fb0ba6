"""Renders one chat template in a process of its own: a script, started by `chat`.

A template comes with a model file. Jinja's sandbox keeps it from Python's internals, but not from
asking for endless loops and huge strings; the limits of this process do.

Standard input is JSON, `{"template", "messages", "add_generation_prompt", "special_tokens"}`;
standard output is JSON too, `{"text"}` or `{"error"}`.
"""

from __future__ import annotations

import datetime
import json
import resource
import sys
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

_MAX_BYTES = 2**29
_MAX_SECONDS = 2
_MAX_CHARACTERS = 2**24


def render(request: dict[str, Any]) -> dict[str, str]:
  """Renders the template of a request."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _refuse
  environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
  try:
    template = environment.from_string(request["template"])
    text = template.render(
      messages=request["messages"],
      add_generation_prompt=request["add_generation_prompt"],
      **request["special_tokens"],
    )
    if len(text) > _MAX_CHARACTERS:
      return {"error": f"it makes {len(text)} characters of them"}
    text.encode()
    return {"text": text}
  except MemoryError:
    return {"error": "it needs too much memory"}
  # A template's own arithmetic, calls and recursion end in any error of Python's.
  except Exception as error:
    return {"error": str(error) or type(error).__name__}


def _to_json(value: Any, indent: int | None = None) -> str:
  # Jinja's own filter escapes <, > and & for HTML, which would change what the model reads.
  return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def main() -> None:
  """Answers one request."""
  request = json.load(sys.stdin)
  resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
  resource.setrlimit(resource.RLIMIT_CPU, (_MAX_SECONDS, _MAX_SECONDS))
  json.dump(render(request), sys.stdout)


if __name__ == "__main__":
  main()
