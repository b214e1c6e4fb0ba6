"""Checks of the tensors that a foreign checkpoint has, before memory is allocated for any."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from egad_jax.errors import InputError
from egad_jax.models.config import DecoderConfig
from egad_jax.models.foreign_keys import listed
from egad_jax.models.layout import Tensor

# Suffixes of tensors that quantized checkpoints have besides, or instead of, the weights.
_QUANTIZED = (
  ".qweight",
  ".qzeros",
  ".scales",
  ".weight_scale",
  ".weight_scale_inv",
  ".weight_packed",
  ".absmax",
  ".quant_map",
  ".g_idx",
  ".SCB",
  ".input_scale",
  ".biases",
)


def check_names(
  source: str, family: str, *, expected: Collection[str], got: Collection[str]
) -> None:
  """Checks that a checkpoint has exactly the expected tensors.

  Args:
    source: name of the checkpoint, for messages.
    family: what the family is called in messages.
    expected: names of the tensors that it must have.
    got: names of the tensors that it has.

  Raises:
    InputError: tensors are missing or unexpected; the message names some.
  """
  for problem, names in (
    ("lacks", sorted(set(expected) - set(got))),
    ("has unexpected", sorted(set(got) - set(expected))),
  ):
    if names:
      raise InputError(
        f"{source} {problem} tensors: {listed(names)}. Expected the {len(expected)} tensors of a "
        f"{family} model with its config's flags; got {len(got)}. "
        f"{_names_hint(set(expected), set(got))}"
      )


def _names_hint(expected: set[str], got: set[str]) -> str:
  """A sentence that says what to do about missing or unexpected tensors."""
  extra, table = got - expected, "embed_tokens.weight"
  if expected - got == {"lm_head.weight"} and not extra:
    return (
      "If the model shares its embedding table, set tie_word_embeddings to true in config.json."
    )
  if any(name.endswith(_QUANTIZED) for name in extra):
    return "Quantized weights are read from GGUF only: use the model's GGUF file."
  if any("lora_" in name for name in extra):
    return "They are a LoRA adapter's; merge it into its model first."
  if table in extra:
    return "It was saved from the model without its head; save it as an AutoModelForCausalLM."
  prefixes = {n.removesuffix(f"model.{table}") for n in extra if n.endswith(f"model.{table}")}
  if prefixes:
    return (
      f"Its names begin with {min(prefixes)!r}, as of a part of a larger model; save the language "
      "model by itself, as an AutoModelForCausalLM."
    )
  return "Use the files that belong to this config, or another model."


def check_shape(source: str, name: str, *, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
  """Checks the shape of one tensor of a checkpoint.

  Raises:
    InputError: the shapes differ; the message has the tensor's name and both shapes.
  """
  if tuple(expected) != tuple(got):
    raise InputError(
      f"{source}: tensor {name} must have shape {list(expected)} by the model's config; "
      f"got {list(got)}."
    )


def check_depth(source: str, config: DecoderConfig, count: int) -> None:
  """Checks claimed numbers of layers and experts, before lists with entries for each are made.

  Args:
    source: name of the checkpoint, for messages.
    config: the architecture that it claims.
    count: number of tensors that it has.

  Raises:
    InputError: there are fewer tensors than layers, or than experts of all layers.
  """
  if config.num_layers > count:
    raise InputError(
      f"{source} lacks tensors: it has {count}, too few for the {config.num_layers} layers "
      "that its config claims."
    )
  if config.experts is not None and config.num_layers * config.experts.count > count:
    raise InputError(
      f"{source} lacks tensors: it has {count}, too few for the {config.experts.count} experts of "
      f"each of {config.num_layers} layers that its config claims."
    )


def check_tensors(
  source: str,
  family: str,
  tensors: Sequence[Tensor],
  name_of: Callable[[Tensor], str],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Checks names and shapes of all tensors of a checkpoint.

  Args:
    source: name of the checkpoint, for messages.
    family: what the family is called in messages.
    tensors: the tensors that it must have.
    name_of: returns a tensor's name in this kind of file.
    shapes: shape of each tensor in the checkpoint, by name.

  Raises:
    InputError: tensors are missing, unexpected or of another shape; the message names them.
  """
  expected = {name_of(tensor): tensor.shape for tensor in tensors}
  check_names(source, family, expected=expected, got=shapes)
  for name, shape in expected.items():
    check_shape(source, name, expected=shape, got=shapes[name])


def check_finite(source: str, name: str, array: np.ndarray) -> None:
  """Checks that all values of one tensor of a checkpoint are finite in float32.

  Raises:
    InputError: a value is NaN, infinite or too large for float32.
  """
  if array.dtype.itemsize == 2:
    # Without the sign, bits of finite numbers are below those of infinity, and of NaN above them.
    # Comparing the numbers themselves takes fifteen times as long.
    infinity = np.array(np.inf, array.dtype).view(np.uint16)
    finite = bool(np.max(array.view(np.uint16) & 0x7FFF, initial=0) < infinity)
  else:
    # min and max propagate NaN, and need no temporary arrays.
    largest = np.maximum(-array.min(initial=0), array.max(initial=0))
    finite = largest <= np.finfo(np.float32).max
  if not finite:
    raise InputError(
      f"{source}: tensor {name} must hold finite float32 numbers; it holds others. The file may "
      "be damaged; fetch it again."
    )
