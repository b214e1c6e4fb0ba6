"""Exports a student as a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, Protocol

from etils import epath

from egad_jax.files import owned, paths
from egad_jax.files.replacing import replacing
from egad_jax.models import family, layout
from egad_jax.models.config import DecoderConfig
from egad_jax.models.directory_layout import CONFIG
from egad_jax.models.generation_settings import FILE as GENERATION_CONFIG
from egad_jax.models.generation_settings import NO_SETTINGS, GenerationSettings
from egad_jax.models.model import Params
from egad_jax.models.safetensors_shards import ShardedWriter, check_dtype


class TokenizerFiles(Protocol):
  """The part of a `Tokenizer` that the export needs."""

  vocab_size: int
  bos_id: int | None
  eos_id: int
  document_end_id: int
  pad_id: int | None

  def save(self, directory: Any) -> None:
    """Writes the tokenizer's files into a directory on a disk."""


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
  fetch: layout.Fetch | None = None,
  writes: bool = True,
) -> epath.Path:
  """Writes a model that `transformers.AutoModelForCausalLM.from_pretrained` loads.

  The saved embedding has a row for each id of the tokenizer and no more: training and evaluation
  leave padding rows out of the softmax, and programs that load the export would not.

  The weights come from the devices tensor by tensor, in files of at most 5 GB, as transformers
  writes them.

  On a disk the directory is written under another name and renamed, so it is whole or absent. Only
  an earlier export is replaced: `egad_jax.json` in it lists the files that we wrote. In an object
  store the files are copied, config.json last.

  Args:
    directory: the export's directory, on a disk or in an object store.
    config: the student's architecture.
    params: the student's parameters, in the layout of `Model.init`, on the host or on devices.
    tokenizer: the student's tokenizer, whose files and special ids are exported too.
    model_card: content of README.md.
    generation: end tokens and sampling settings of the model from which the student learnt. The id
      that ends a document of plain text is added, because the student learnt to emit it.
    dtype: dtype of the saved weights, "float32", "bfloat16" or "float16".
    what: the flag that named the directory, for messages.
    fetch: copies an array of `params`, or its entry, to the host, as `layout.Fetch`; called in the
      same order on all processes. None if NumPy can.
    writes: whether this process writes. The others only take part in `fetch`.

  Returns:
    The directory, as `paths.parse` returns it.

  Raises:
    InputError: the model's family cannot express the architecture, `dtype` is another, a
      value is beyond the range of float16, or the directory holds something that we did not write.
  """
  target = paths.parse(directory, what)
  check_dtype(dtype)
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f"a tokenizer of {tokenizer.vocab_size} ids cannot go with {config.vocab_size} rows."
    )
  config = dataclasses.replace(config, vocab_size=tokenizer.vocab_size)
  ends = generation.learnt_ends(tokenizer)
  eos = list(ends) if len(ends) > 1 else ends[0]
  hf_config = family.config_to_hf(
    config, dtype=dtype, bos_id=tokenizer.bos_id, eos_id=eos, pad_id=tokenizer.pad_id
  )
  special = {key: hf_config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
  tensors = family.tensors(config)
  if not writes:
    for _ in layout.take_apart(tensors, params, fetch):
      pass
    return target
  with replacing(target, what, owned.EXPORT) as staged:
    writer = ShardedWriter(staged, [(tensor.hf, tensor.shape) for tensor in tensors], dtype=dtype)
    for tensor, array in layout.take_apart(tensors, params, fetch):
      writer.write(tensor.hf, array)
    _write_json(staged / CONFIG, hf_config)
    _write_json(staged / GENERATION_CONFIG, special | dict(generation.sampling))
    tokenizer.save(staged)
    (staged / "README.md").write_text(model_card, "utf-8")
  return target


def _write_json(path: pathlib.Path, data: dict[str, Any]) -> None:
  path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
