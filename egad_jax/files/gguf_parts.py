"""Opens GGUF files that llama-gguf-split has split into parts, NAME-00001-of-00003.gguf and on."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from egad_jax.errors import InputError
from egad_jax.files.gguf_file import GGUFFile, open_gguf
from egad_jax.files.regular_file import is_there

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
# Each part is a file that is kept open.
_MAX_PARTS = 512


def open_parts(path: pathlib.Path) -> GGUFFile:
  """Reads the header of a GGUF file and of its further parts, if it has any.

  Args:
    path: a whole file, or the first part, whose name says how many there are.

  Returns:
    The metadata of the first part, and the tensors of all parts.

  Raises:
    InputError: it is not the first part; a part is missing, is of another file, or has a tensor
      that an earlier part has; or all have another number of tensors than the first says.
  """
  first = open_gguf(path)
  count = _integer(path, first.metadata, "split.count", 1)
  if count <= 1:
    return first
  named = _NAME.fullmatch(path.name)
  if count > _MAX_PARTS or named is None or int(named[3]) != count:
    raise InputError(
      f"{path} is one of {count} parts (split.count), and its name must end in "
      f"-00001-of-{count:05}.gguf, of at most {_MAX_PARTS} parts. Give the parts the names under "
      "which they were published, or join them: llama-gguf-split --merge FIRST_PART OUTPUT.gguf."
    )
  names = [f"{named[1]}-{index:05}-of-{count:05}.gguf" for index in range(1, count + 1)]
  if _integer(path, first.metadata, "split.no", 0) != 0 or path.name != names[0]:
    raise InputError(f"{path} is not the first of {count} parts; name {names[0]} instead.")
  tensors = dict(first.tensors)
  for index, name in enumerate(names[1:], 1):
    other = path.with_name(name)
    if not is_there(other):
      raise InputError(
        f"{other}: no such file, though {path.name} is one of {count} parts; fetch it again."
      )
    part = open_gguf(other)
    wanted = {"split.no": index, "split.count": count}
    said = {key: _integer(other, part.metadata, key, 0) for key in wanted}
    twice = sorted(tensors.keys() & part.tensors.keys())
    if said != wanted or twice:
      raise InputError(
        f"{other} does not belong to {path.name}: expected {wanted} and no tensor of an earlier "
        f"part, got {said} and {len(twice)} of them. Fetch all parts again."
      )
    tensors |= part.tensors
  total = _integer(path, first.metadata, "split.tensors.count", len(tensors))
  if total != len(tensors):
    raise InputError(
      f"{path} says that its parts have {total} tensors (split.tensors.count); they have "
      f"{len(tensors)}. Fetch all parts again."
    )
  return GGUFFile(first.metadata, tensors)


def _integer(path: pathlib.Path, metadata: dict[str, Any], key: str, default: int) -> int:
  value = metadata.get(key, default)
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    raise InputError(f"{path}: {key} must be 0 or a positive integer; got {value!r}.")
  return value
