"""Downloads models from the Hugging Face Hub, or finds them in its local cache."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from egad_jax.errors import InputError

SCHEME = "hf:"
# OWNER/NAME, or NAME alone for some old models; then a branch, a tag or a commit.
_NAME = re.compile(
  r"([\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:@([\w-][\w.-]*(?:/[\w-][\w.-]*)*))?", re.ASCII
)
# The files that are read; a repository may hold the same weights in several formats.
_TEXTS = (
  "config.json",
  "generation_config.json",
  "tokenizer*",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template*",
  "additional_chat_templates/*.jinja",
  "README.md",
  "LICENSE*",
)
_WEIGHTS = ("*.safetensors", "model.safetensors.index.json")
# The same weights once more, in the layout of other programs.
_LEFT_OUT = ("*/*.safetensors", "*/*.json", "consolidated*")


def is_on_hub(source: str) -> bool:
  """Whether a source is named `hf:NAME` or `hf:NAME@REVISION`."""
  return source.startswith(SCHEME)


def name_of(source: str) -> str:
  """The name in `hf:NAME[@REVISION]`, without the revision."""
  return _parts(source)[0]


def snapshot(source: str, *, weights: bool) -> pathlib.Path:
  """The directory of a model in the local cache, downloaded first if it is not there.

  The cache is that of all programs that use the Hub (HF_HOME, HF_HUB_CACHE), and its locks let one
  process of a machine download a file while others wait. Without a network, or with
  HF_HUB_OFFLINE=1, the cache alone is used.

  Args:
    source: `hf:NAME` or `hf:NAME@REVISION`.
    weights: whether the weights are needed, and not only the config and the tokenizer.

  Raises:
    InputError: the name is malformed, the model does not exist or is not open to this user, or it
      is neither in the cache nor can be downloaded.
  """
  name, revision = _parts(source)
  import huggingface_hub
  from huggingface_hub import errors

  try:
    found: Any = huggingface_hub.snapshot_download(
      name,
      revision=revision,
      allow_patterns=[*_TEXTS, *(_WEIGHTS if weights else ())],
      ignore_patterns=list(_LEFT_OUT),
    )
  except errors.GatedRepoError as error:
    raise InputError(
      f"source {source!r}: the model is open only to users who accepted its terms. Accept them at "
      f"https://huggingface.co/{name}, and log in with `hf auth login` or set HF_TOKEN."
    ) from error
  except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
    raise InputError(
      f"source {source!r}: the Hugging Face Hub has no such model or revision, or not for this "
      "user. Correct the name, or log in with `hf auth login` if the model is private."
    ) from error
  # The clients for HTTP below have error classes of their own.
  except Exception as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")[:300]
    raise InputError(
      f"source {source!r}: it is not whole in the cache ({_cache()}), and cannot be downloaded: "
      f"{reason}. Connect this machine to the network (without HF_HUB_OFFLINE); or run `hf "
      f"download {name}` on one that is, copy its cache here and set HF_HOME to it; or give a "
      "directory."
    ) from error
  return pathlib.Path(os.fspath(found))


def _cache() -> str:
  from huggingface_hub import constants

  return str(constants.HF_HUB_CACHE)


def _parts(source: str) -> tuple[str, str | None]:
  match = _NAME.fullmatch(source.removeprefix(SCHEME))
  if match is None or ".." in source:
    raise InputError(
      f"source {source!r}: expected hf:NAME or hf:NAME@REVISION, like hf:Qwen/Qwen3-8B or "
      "hf:Qwen/Qwen3-8B@main."
    )
  return match[1], match[2]
