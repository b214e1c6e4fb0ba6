"""Checks that a config.json describes a plain Llama: one kind of layer, a language model's head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from egad_jax.errors import InputError
from egad_jax.models.foreign_keys import shown
from egad_jax.models.key_tables import LLAMA_CONFIG

# The first conversions of Llama used the second spelling.
_ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM")
_FULL = "full_attention"
_CONVERT = "Save the model with transformers' LlamaForCausalLM, or use another."


def check_family(source: str, data: Mapping[str, Any]) -> None:
  """Checks the model's type, its architectures, and that it has no code of its own.

  Args:
    source: name of the file, for messages.
    data: content of the file.

  Raises:
    InputError: it is not a Llama with the head of a language model.
  """
  if data.get("model_type") != "llama":
    raise InputError(
      f'{source}: model_type must be "llama"; got {shown(data.get("model_type"))}. '
      "Other families are not supported."
    )
  architectures = data.get("architectures") or []
  if not isinstance(architectures, list) or any(a not in _ARCHITECTURES for a in architectures):
    raise InputError(
      f"{source}: architectures must be [{_ARCHITECTURES[0]!r}] or absent; got "
      f"{shown(architectures)}, which has another head or other layers. {_CONVERT}"
    )
  code = data.get("auto_map") or {}
  if not isinstance(code, dict) or any(key != "AutoTokenizer" for key in code):
    raise InputError(
      f"{source}: auto_map names a program of the model's own ({shown(code)}), which is not run. "
      "If the model is a plain Llama all the same, remove auto_map; else use another."
    )


def check_layers(source: str, data: Mapping[str, Any]) -> None:
  """Checks that in every layer a token sees all tokens before it.

  Args:
    source: name of the file, for messages.
    data: content of the file.

  Raises:
    InputError: a layer has a window or attention of another kind.
  """
  kinds = data.get("layer_types")
  if kinds is not None and (not isinstance(kinds, list) or set(map(str, kinds)) - {_FULL}):
    raise InputError(f"{source}: layer_types must all be {_FULL!r}; got {shown(kinds)}. {_CONVERT}")
  window = data.get("sliding_window")
  # A window as long as the context hides nothing.
  if window is not None and data.get("use_sliding_window") is not False:
    reach = data.get("max_position_embeddings")
    if not (isinstance(window, int) and isinstance(reach, int) and window >= reach > 0):
      raise InputError(
        f"{source}: sliding_window must be absent or reach over all positions; got "
        f"{shown(window)}. {LLAMA_CONFIG.remedy}"
      )
  elif data.get("use_sliding_window"):
    raise InputError(f"{source}: use_sliding_window must be false. {LLAMA_CONFIG.remedy}")
