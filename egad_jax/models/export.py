"""Export in Hugging Face layout."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Protocol

from etils import epath

from egad_jax.files import owned, paths
from egad_jax.files.replacing import replacing
from egad_jax.models import llama
from egad_jax.models.config import DecoderConfig
from egad_jax.models.directory_layout import CONFIG, SINGLE
from egad_jax.models.generation_settings import FILE as GENERATION_CONFIG
from egad_jax.models.generation_settings import NO_SETTINGS, GenerationSettings
from egad_jax.models.model import Params
from egad_jax.models.safetensors_io import write_safetensors

# Parameters with a row for each id.
_TABLES = ("embedding", "unembedding")


class TokenizerFiles(Protocol):
  """What the export needs of a tokenizer."""

  vocab_size: int
  bos_id: int | None
  eos_id: int
  document_end_id: int
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
  generation: GenerationSettings = NO_SETTINGS,
  dtype: str = "float32",
  what: str = "the export",
) -> epath.Path:
  """Writes a model that `transformers.AutoModelForCausalLM.from_pretrained` loads.

  It has a row for each id of the tokenizer and no more: training and evaluation leave further rows
  out of the softmax, and so must whoever loads it.

  On a disk the directory is written beside its place and renamed, so it is whole or absent. An
  earlier export of ours is replaced, and nothing else: `egad_jax.json` in it lists the files that
  we wrote. To an object store its files are copied, config.json last.

  Args:
    directory: where.
    config: the architecture.
    params: the parameters.
    tokenizer: whose files and special ids go with them.
    model_card: contents of README.md.
    generation: how texts of the model that it learnt from end and are sampled; what ends a document
      of plain text is added, because the student learnt to end so.
    dtype: "float32" or "bfloat16", dtype of the saved weights.
    what: the flag that named the directory, for messages.

  Returns:
    The directory.

  Raises:
    InputError: if Llama cannot express the architecture, `dtype` is another, or the directory
      holds something that we did not write.
  """
  target = paths.parse(directory, what)
  config, params = _without_padding(config, params, tokenizer.vocab_size)
  ends = generation.learnt_ends(tokenizer)
  eos = list(ends) if len(ends) > 1 else ends[0]
  hf_config = llama.config_to_hf(
    config, dtype=dtype, bos_id=tokenizer.bos_id, eos_id=eos, pad_id=tokenizer.pad_id
  )
  special = {key: hf_config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
  with replacing(target, what, owned.EXPORT) as staged:
    write_safetensors(staged / SINGLE, llama.take_apart(config, params), dtype=dtype)
    _write_json(staged / CONFIG, hf_config)
    _write_json(staged / GENERATION_CONFIG, special | dict(generation.sampling))
    tokenizer.save(staged)
    (staged / "README.md").write_text(model_card, "utf-8")
  return target


def _without_padding(
  config: DecoderConfig, params: Params, rows: int
) -> tuple[DecoderConfig, Params]:
  """The model with `rows` rows of its embedding and unembedding.

  Raises:
    ValueError: if it has fewer.
  """
  if rows > config.vocab_size:
    raise ValueError(f"a tokenizer of {rows} ids cannot go with {config.vocab_size} rows.")
  tables: Params = {name: params[name][:rows] for name in _TABLES if name in params}
  return dataclasses.replace(config, vocab_size=rows), params | tables


def _write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
  path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
