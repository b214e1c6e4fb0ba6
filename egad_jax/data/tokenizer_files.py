"""The files beside tokenizer.json: data from others, of which only plain values are taken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers
from etils import epath

from egad_jax.errors import InputError
from egad_jax.regular_file import read_regular


def read_text(path: epath.Path) -> str:
  """Reads a text file.

  Raises:
    InputError: if it is too large, unreadable or not UTF-8.
  """
  try:
    return read_regular(path).decode()
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: cannot be read: {error}. Copy the file again.") from error


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object; an absent file is an empty one.

  Raises:
    InputError: if the file holds anything else.
  """
  if not path.exists():
    return {}
  text = read_text(path)
  try:
    content = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path}: not valid JSON: {error}. Copy the file again.") from error
  if not isinstance(content, dict):
    raise InputError(f"{path}: must be a JSON object; got {type(content).__name__}.")
  return content


def special_id(
  directory: epath.Path, backend: tokenizers.Tokenizer, config: Mapping[str, Any], role: str
) -> int | None:
  """The id of a role's token, such as "eos"; None if the config names none or an unknown one.

  Raises:
    InputError: if the config names it by something other than text.
  """
  token = config.get(f"{role}_token")
  text = token.get("content") if isinstance(token, dict) else token
  if text is not None and not _is_text(text):
    raise InputError(f"{directory}: {role}_token must be text; got {token!r}.")
  return None if text is None else backend.token_to_id(text)


def _is_text(value: Any) -> bool:
  """Whether a JSON value is text that UTF-8 can hold: without halves of surrogate pairs."""
  return isinstance(value, str) and value == value.encode("utf-8", "ignore").decode()


def chat_template(directory: epath.Path, config: Mapping[str, Any]) -> str | None:
  """The chat template, of chat_template.jinja or the config; None without one.

  Raises:
    InputError: if it is not text.
  """
  path = directory / "chat_template.jinja"
  if path.exists():
    return read_text(path)
  template = config.get("chat_template")
  if isinstance(template, list):
    named = [entry for entry in template if isinstance(entry, dict)]
    template = next((e.get("template") for e in named if e.get("name") == "default"), None)
  if template is not None and not _is_text(template):
    raise InputError(f"chat_template must be text, or a list of named ones; got {template!r}.")
  return template


def max_length(config: Mapping[str, Any]) -> int | None:
  """The positions the model was made for; None if the config does not say.

  Raises:
    InputError: if it is not a positive number.
  """
  length = config.get("model_max_length")
  if length is None:
    return None
  if isinstance(length, bool) or not isinstance(length, int | float) or not length > 0:
    raise InputError(f"model_max_length must be a positive number; got {length!r}.")
  return int(length) if length < 1e9 else None
