"""Finds the files of a Hugging Face directory that hold the model, and refuses other layouts."""

from __future__ import annotations

import fnmatch
import pathlib
from collections.abc import Collection

from egad_jax.errors import InputError
from egad_jax.files.json_file import read_json
from egad_jax.files.regular_file import is_there, require_regular
from egad_jax.models.foreign_keys import listed

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Weights, also those in other programs' formats.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.h5", "*.msgpack", "*.gguf", "*.npz")
# Files that have such names but hold no weights of a model.
_NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*.pth", "scaler.pt")
_SAVE = (
  "Load it with transformers and save it as safetensors: "
  "AutoModelForCausalLM.from_pretrained(DIRECTORY).save_pretrained(OUTPUT)."
)


def check_layout(directory: pathlib.Path) -> None:
  """Checks that a directory holds one model, with its weights as safetensors.

  Raises:
    InputError: it holds no model, weights in another format, an adapter, or two sets of weights.
  """
  adapters = _present(directory, ("adapter_config.json", "adapter_model.*"))
  if adapters:
    raise InputError(
      f"{directory} holds a LoRA adapter ({listed(adapters)}), which is not applied here. Merge it "
      "first: with peft, PeftModel.from_pretrained(BASE, DIRECTORY).merge_and_unload(), then "
      "save_pretrained(OUTPUT)."
    )
  single, index = (directory / name for name in (SINGLE, INDEX))
  weights = is_there(single) or is_there(index)
  advice = "" if weights else _help(directory, other_weights(directory, ()))
  if not is_there(directory / CONFIG):
    raise InputError(
      f"{directory / CONFIG}: no such file; expected a Hugging Face directory with {CONFIG} and "
      f"{SINGLE}.{advice}"
    )
  require_regular(directory / CONFIG)
  if not weights:
    raise InputError(f"{directory}: expected {SINGLE} or {INDEX}; it has neither.{advice}")
  if is_there(single) and is_there(index):
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or SINGLE not in files.values():
      raise InputError(
        f"{directory} holds two sets of weights: {SINGLE}, and the files of {INDEX}. Move the one "
        "that is not meant elsewhere (for the second, the index with its files)."
      )


def other_weights(directory: pathlib.Path, read: Collection[str]) -> list[str]:
  """Sorted names of files in a directory that may hold weights, without the names in `read`."""
  found = _present(directory, _WEIGHTS)
  return [
    name
    for name in found
    if name not in read and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _NO_WEIGHTS)
  ]


def _present(directory: pathlib.Path, patterns: tuple[str, ...]) -> list[str]:
  names = sorted(path.name for path in directory.iterdir())
  return [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]


def _help(directory: pathlib.Path, others: list[str]) -> str:
  if any(name.endswith(".gguf") for name in others):
    return f" To read a GGUF file, name the file itself: one of {listed(others)}."
  if (directory / "params.json").is_file():
    return (
      f" It is in the layout of Meta's or Mistral's own programs ({listed(others)}); use the "
      "model's Hugging Face directory."
    )
  if any(name.endswith(".safetensors") for name in others):
    return f" It has {listed(others)}; copy the index, or the rest of the directory, too."
  return f" It has {listed(others)}. {_SAVE}" if others else ""
