"""Reads and writes tokenizer.json and the files beside it; takes only plain values from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers
from absl import logging
from etils import epath

from egad_jax.data import tokenizer_config, tokenizer_json
from egad_jax.data.frame import Frame, read_frame, set_frame
from egad_jax.data.text_files import read_json, read_text
from egad_jax.errors import InputError

_ROLES = ("bos", "eos", "pad", "unk")


class TokenizerDirectory(NamedTuple):
  """The tokenizer of a Hugging Face directory.

  Attributes:
    backend: the tokenizer, with the tokens and the post-processor that all files together define.
    ids: the id of each role, "bos", "eos", "pad" and "unk"; None if there is no such token.
    names: texts of special tokens by the names that chat templates use.
    chat_templates: Jinja sources by name.
    max_length: number of positions that the model was made for; None if no file says.
  """

  backend: tokenizers.Tokenizer
  ids: dict[str, int | None]
  names: dict[str, str]
  chat_templates: dict[str, str]
  max_length: int | None


def read_directory(directory: epath.Path) -> TokenizerDirectory:
  """Reads tokenizer.json and the files beside it, as transformers does.

  Raises:
    InputError: a file is missing or broken, or asks for something that is not supported.
  """
  path = directory / "tokenizer.json"
  if not path.exists():
    raise InputError(
      f"{directory}: no tokenizer.json. Make one with transformers: "
      "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)."
    )
  backend = tokenizer_json.load(path)
  files = {
    name: read_json(directory / name)
    for name in (tokenizer_config.FILE, tokenizer_config.MAP, tokenizer_config.ADDED)
  }
  try:
    config = tokenizer_config.merged(files)
    tokenizer_config.check(config, backend)
    tokenizer_config.add_tokens(backend, config, files[tokenizer_config.ADDED])
    names = tokenizer_config.named_tokens(config)
    known = {name: text for name, text in names.items() if backend.token_to_id(text) is not None}
    for name in sorted(names.keys() - known.keys()):
      logging.warning(
        "%s: its %s %r is not in the vocabulary, and is taken for none.",
        directory,
        name,
        names[name],
      )
    ids = {role: backend.token_to_id(known.get(f"{role}_token", "")) for role in _ROLES}
    _set_frame(directory, backend, config, ids)
    return TokenizerDirectory(
      backend=backend,
      ids=ids,
      names=known,
      chat_templates=_chat_templates(directory, config),
      max_length=_max_length(config),
    )
  except InputError as error:
    raise InputError(f"{directory}: {error}") from error


def write_directory(
  directory: epath.Path,
  backend: tokenizers.Tokenizer,
  special: Mapping[str, str],
  *,
  chat_templates: Mapping[str, str],
  max_length: int | None,
) -> None:
  """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.

  Args:
    directory: made if it does not exist.
    backend: the tokenizer itself, whose JSON becomes tokenizer.json.
    special: text of special tokens by name, such as `eos_token`.
    chat_templates: Jinja sources by name.
    max_length: number of positions that the model was made for; None if unknown.
  """
  directory.mkdir(parents=True, exist_ok=True)
  config: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    # transformers takes this number for "unknown".
    "model_max_length": max_length or int(1e30),
    **special,
  }
  if list(chat_templates) == ["default"]:
    config["chat_template"] = chat_templates["default"]
  elif chat_templates:
    named = sorted(chat_templates.items())
    config["chat_template"] = [{"name": name, "template": text} for name, text in named]
  (directory / "tokenizer.json").write_text(backend.to_str(pretty=True))
  for name, content in ((tokenizer_config.FILE, config), (tokenizer_config.MAP, special)):
    (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _set_frame(
  directory: epath.Path,
  backend: tokenizers.Tokenizer,
  config: Mapping[str, Any],
  ids: Mapping[str, int | None],
) -> None:
  """Follows `add_bos_token` and `add_eos_token` where the post-processor adds nothing.

  Where both add something to a text, or the flag is false, the post-processor decides, as in
  transformers 5. Where the post-processor adds nothing, transformers 5 ignores the flag, but
  transformers 4 and the converter to GGUF follow it, as is done here.
  """
  frame = read_frame(backend)
  wanted = dict[str, tuple[int, ...]]()
  for role, side, found in (("bos", "prefix", frame.prefix), ("eos", "suffix", frame.suffix)):
    flag, token = config.get(f"add_{role}_token"), ids[role]
    if flag and token is None:
      raise InputError(f"add_{role}_token is true, but no {role}_token is in the vocabulary.")
    if flag and not found:
      wanted[side] = (token,) if token is not None else ()
    elif flag is False and found:
      logging.warning(
        "%s: add_%s_token is false in %s, but the post_processor of tokenizer.json puts %s there; "
        "the post_processor decides.",
        directory,
        role,
        tokenizer_config.FILE,
        [backend.id_to_token(i) for i in found],
      )
  if wanted:
    set_frame(backend, Frame(**(frame._asdict() | wanted)))


def _chat_templates(directory: epath.Path, config: Mapping[str, Any]) -> dict[str, str]:
  """Chat templates by name: from files of their own, else from the config.

  Raises:
    InputError: a template is not text.
  """
  paths = {}
  if (directory / "chat_template.jinja").exists():
    paths["default"] = directory / "chat_template.jinja"
  folder = directory / "additional_chat_templates"
  if folder.is_dir():
    found = sorted(path for path in folder.iterdir() if path.suffix == ".jinja")
    paths |= {path.name.removesuffix(".jinja"): path for path in found}
  if paths:
    return {name: read_text(path) for name, path in paths.items()}
  template: Any = config.get("chat_template")
  if isinstance(template, list):
    named = [entry if isinstance(entry, dict) else {} for entry in template]
    template = {entry.get("name"): entry.get("template") for entry in named}
  elif not isinstance(template, dict):
    template = {} if template is None else {"default": template}
  for name, text in template.items():
    if not (tokenizer_config.is_text(name) and tokenizer_config.is_text(text)):
      raise InputError(f"chat_template must be text, or texts by name; got {text!r} as {name!r}.")
  return template


def _max_length(config: Mapping[str, Any]) -> int | None:
  """The number of positions that the model was made for; None if the config does not say.

  Raises:
    InputError: it is not a positive number.
  """
  length = config.get("model_max_length", config.get("max_len"))
  if length is None:
    return None
  if isinstance(length, bool) or not isinstance(length, int | float) or not length > 0:
    raise InputError(f"model_max_length must be a positive number; got {length!r}.")
  return int(length) if length < 1e9 else None
