"""Export in Hugging Face layout."""

from __future__ import annotations

import json
import pathlib
from typing import Any, Protocol

from etils import epath

from egad_jax import owned, paths
from egad_jax.models import llama
from egad_jax.models.config import DecoderConfig
from egad_jax.models.model import Params
from egad_jax.models.safetensors_io import SINGLE, write_safetensors
from egad_jax.replacing import replacing


class TokenizerFiles(Protocol):
  """What the export needs of a tokenizer."""

  bos_id: int | None
  eos_id: int
  pad_id: int | None

  def save(self, directory: Any) -> None:
    """Writes the tokenizer's files."""


def export_student(
  directory: epath.PathLike,
  config: DecoderConfig,
  params: Params,
  tokenizer: TokenizerFiles,
  *,
  model_card: str,
  dtype: str = "float32",
  what: str = "the export",
) -> epath.Path:
  """Writes a model that `transformers.AutoModelForCausalLM.from_pretrained` loads.

  On a disk the directory is written beside its place and renamed, so it is whole or absent. An
  earlier export of ours is replaced, and nothing else: `egad_jax.json` in it lists the files that
  we wrote. To an object store its files are copied, config.json last.

  Args:
    directory: where.
    config: the architecture.
    params: the parameters.
    tokenizer: whose files and special ids go with them.
    model_card: contents of README.md.
    dtype: "float32" or "bfloat16", dtype of the saved weights.
    what: the flag that named the directory, for messages.

  Returns:
    The directory.

  Raises:
    InputError: if Llama cannot express the architecture, `dtype` is another, or the directory
      holds something that we did not write.
  """
  target = paths.parse(directory, what)
  ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
  hf_config = llama.config_to_hf(config, dtype=dtype, **ids)
  generation = {f"{name[:-3]}_token_id": value for name, value in ids.items()}
  with replacing(target, what, owned.EXPORT) as staged:
    write_safetensors(staged / SINGLE, llama.take_apart(config, params), dtype=dtype)
    _write_json(staged / "config.json", hf_config)
    _write_json(staged / "generation_config.json", generation)
    tokenizer.save(staged)
    (staged / "README.md").write_text(model_card, "utf-8")
  return target


def _write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
  path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
