"""Families of models: what a file in `families/` says of one, and how it is found.

Every module of the package `egad_jax.models.families` declares one `FAMILY`; nothing else lists
them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from egad_jax.errors import InputError
from egad_jax.models import layout
from egad_jax.models.config import DecoderConfig
from egad_jax.models.families import declared
from egad_jax.models.foreign_keys import Table, check_closed, listed, shown
from egad_jax.models.generation_settings import LEGACY_GENERATION
from egad_jax.models.hf_config import HFConfig
from egad_jax.models.layout import Row, Tensor

# Buffers that follow from the config, which some versions of programs saved.
_DERIVED = r"(\w+\.)*(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)|position_ids)"


class GGUFFamily(NamedTuple):
  """How a family's models are described in GGUF.

  Attributes:
    keys: the table of the metadata keys below "ARCHITECTURE.", without that prefix.
    config: makes the architecture from a `gguf_config.GGUFConfig`.
    transforms: path of a parameter, as in a `Row`, -> `(config, array) -> array`, which turns an
      array of GGUF into Hugging Face's layout and values.
  """

  keys: Table
  config: Callable[[Any], DecoderConfig]
  transforms: Mapping[str, Callable[[DecoderConfig, np.ndarray], np.ndarray]] = (
    types.MappingProxyType({})
  )


class Family(NamedTuple):
  """A family of models in foreign files.

  Attributes:
    name: `model_type` in config.json, and `DecoderConfig.family`.
    title: what the family is called in messages.
    architectures: names of its class in transformers; the first is exported.
    keys: the table of the keys of config.json.
    defaults: the values that transformers gives to absent keys.
    config_from_hf: makes the architecture from the reader of a config.json.
    config_to_hf: the family's own keys of a config.json; undoes `config_from_hf`.
    tensors: the tensors, from which import and export follow; those that an architecture does not
      have are left out.
    gguf_names: values of general.architecture in GGUF.
    gguf: how GGUF describes the family; None if it is not read from GGUF.
    prefix: beginning of all names of tensors but the unembedding's, which some files leave out; ""
      if no files do.
    own_code: classes that auto_map may name, because transformers has the same ones built in.
    derived: expression of further names of tensors that follow from the config.
  """

  name: str
  title: str
  architectures: tuple[str, ...]
  keys: Table
  defaults: Mapping[str, Any]
  config_from_hf: Callable[[HFConfig], DecoderConfig]
  config_to_hf: Callable[[DecoderConfig], dict[str, Any]]
  tensors: tuple[Row, ...]
  gguf_names: tuple[str, ...] = ()
  gguf: GGUFFamily | None = None
  prefix: str = ""
  own_code: tuple[str, ...] = ()
  derived: str = ""

  def is_derived(self, name: str) -> bool:
    """Whether a tensor is a buffer that follows from the config, such as rotary frequencies."""
    return any(p and re.fullmatch(p, name) for p in (_DERIVED, self.derived))


@functools.cache
def families() -> Mapping[str, Family]:
  """All families by name, in the order of their names."""
  return types.MappingProxyType({family.name: family for family in declared()})


def tensors(config: DecoderConfig) -> list[Tensor]:
  """All tensors of a checkpoint of this architecture, in the layout of its family."""
  return layout.tensors(families()[config.family].tensors, config)


def family_from_hf(source: str, data: Mapping[str, Any]) -> Family:
  """The family of a config.json.

  Args:
    source: name of the file, for messages.
    data: content of the file.

  Raises:
    InputError: the family is not known, or the model is not the language model of its family.
  """
  kind = data.get("model_type")
  family = families().get(kind) if isinstance(kind, str) else None
  if family is None:
    raise InputError(
      f"{source}: model_type must be one of {', '.join(families())}; got {shown(kind)}. "
      "Other families are not supported."
    )
  architectures = data.get("architectures") or []
  if not isinstance(architectures, list) or any(
    a not in family.architectures for a in architectures
  ):
    raise InputError(
      f"{source}: architectures must be [{family.architectures[0]!r}] or absent; got "
      f"{shown(architectures)}, which has another head or other layers. Save the model with "
      f"transformers' {family.architectures[0]}, or use another."
    )
  code = data.get("auto_map") or {}
  if not isinstance(code, dict) or any(
    key != "AutoTokenizer" and value not in family.own_code for key, value in code.items()
  ):
    raise InputError(
      f"{source}: auto_map names a program of the model's own ({shown(code)}), which is not run. "
      f"If the model is a plain {family.title} all the same, remove auto_map; else use another."
    )
  return family


def config_from_hf(source: str, data: Mapping[str, Any]) -> DecoderConfig:
  """Reads the content of a Hugging Face config.json; `unread_keys` names the keys not used.

  Args:
    source: name of the file, for messages.
    data: content of the file.

  Raises:
    InputError: the decoder cannot represent the model exactly, or a key that is not known could
      make it another model.
  """
  family = family_from_hf(source, data)
  family.keys.check(source, data)
  unknown = [
    key
    for key in family.keys.unknown(data)
    if key not in LEGACY_GENERATION and not key.startswith("_") and _says_something(data[key])
  ]
  check_closed(
    source,
    unknown,
    "They may change what the model computes; if they do not, remove them from the file.",
  )
  config = family.config_from_hf(HFConfig(source, data, family.defaults))
  return dataclasses.replace(config, family=family.name)


def _says_something(value: Any) -> bool:
  """Whether a value of an unknown key is other than an absent one."""
  return value is not False and value not in ("", [], {})


def unread_keys(data: Mapping[str, Any]) -> list[str]:
  """The keys of a config.json that are not known and, by their values, ask for nothing."""
  keys = families()[data["model_type"]].keys
  return [key for key in keys.unknown(data) if key not in LEGACY_GENERATION]


def config_to_hf(
  config: DecoderConfig,
  *,
  bos_id: int | None,
  eos_id: int | list[int] | None,
  pad_id: int | None,
  dtype: str,
) -> dict[str, Any]:
  """The content of a config.json that transformers loads as the class of the model's family.

  Args:
    config: the architecture.
    bos_id: id of the beginning-of-sequence token; None if there is none.
    eos_id: id of the end-of-sequence token, or a list of ids; None if there is none.
    pad_id: id of the padding token; None if there is none.
    dtype: dtype of the weights, such as "float32".

  Raises:
    InputError: the family cannot express the architecture.
  """
  family = families()[config.family]
  data = {
    "architectures": [family.architectures[0]],
    "model_type": family.name,
    "bos_token_id": bos_id,
    "eos_token_id": eos_id,
    "pad_token_id": pad_id,
    "tie_word_embeddings": config.tie_embeddings,
    "torch_dtype": dtype,
    "use_cache": True,
    "vocab_size": config.vocab_size,
    **family.config_to_hf(config),
  }
  back = config_from_hf("the export's config.json", data)
  lost = [
    f"{field.name} {getattr(config, field.name)}"
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != getattr(back, field.name)
  ]
  if lost:
    raise InputError(
      f"a model of the {family.title} family cannot be exported with {listed(lost)}, which its "
      "config.json cannot say; use an architecture that the family has."
    )
  return dict(sorted(data.items()))
