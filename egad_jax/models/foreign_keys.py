"""Rules for the keys of foreign files that describe a model.

A key is read; or harmless whatever its value, because it does not affect what the model computes;
or neutral at some values and refused at all others, because they would make it another model. A key
in no table is refused where it could change the model; in formats that are about other things, such
as settings of generation, it is returned, to be named in a warning.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from egad_jax.errors import InputError

CORRECT = "Correct the file, or copy it again."
_MAX_SHOWN = 80


class Table(NamedTuple):
  """The keys of one kind of file.

  Attributes:
    read: keys whose values are used.
    harmless: keys that do not affect what the model computes.
    neutral: key -> the values that mean the same as its absence, the usual one first; () if none.
    remedy: sentence that says what to do about a refused value.
    hints: key -> sentence that replaces `remedy` for this key.
  """

  read: frozenset[str]
  harmless: frozenset[str]
  neutral: Mapping[str, tuple[Any, ...]] = types.MappingProxyType({})
  remedy: str = ""
  hints: Mapping[str, str] = types.MappingProxyType({})

  def under(self, prefix: str) -> Table:
    """The same table with `prefix` in front of every key but those of `hints`."""
    return self._replace(
      read=frozenset(prefix + key for key in self.read),
      harmless=frozenset(prefix + key for key in self.harmless),
      neutral={prefix + key: values for key, values in self.neutral.items()},
    )

  def departures(self, data: Mapping[str, Any]) -> list[str]:
    """The keys of `neutral` that have another value in `data`, in its order."""
    return [
      key
      for key, value in data.items()
      if key in self.neutral and value is not None and not is_one_of(value, self.neutral[key])
    ]

  def unknown(self, data: Mapping[str, Any]) -> list[str]:
    """The keys of `data` that are in no part of the table and have a value."""
    known = self.read | self.harmless | self.neutral.keys()
    return [key for key, value in data.items() if key not in known and value is not None]

  def check(self, source: str, data: Mapping[str, Any]) -> None:
    """Refuses values that would make it another model than the one that is computed.

    Args:
      source: name of the file, for messages.
      data: content of the file, by key.

    Raises:
      InputError: a key of `neutral` has another value.
    """
    for key in self.departures(data):
      expected = repr(self.neutral[key][0]) if self.neutral[key] else "absent"
      raise InputError(
        f"{source}: {key} must be {expected}; got {shown(data[key])}. "
        f"{self.hints.get(key, self.remedy)}"
      )


def check_closed(source: str, unknown: list[str], remedy: str) -> None:
  """Refuses keys that are in no table of a closed format.

  Args:
    source: name of the file, for messages.
    unknown: the keys that are in no table.
    remedy: sentence that says what to do.

  Raises:
    InputError: there are unknown keys.
  """
  if unknown:
    raise InputError(f"{source} has keys that are not known: {listed(unknown)}. {remedy}")


def names(text: str) -> frozenset[str]:
  """The names in a text, which white space separates: a table of keys in few lines.

  >>> sorted(names("rope_theta hidden_size"))
  ['hidden_size', 'rope_theta']
  """
  return frozenset(text.split())


def listed(names: list[str]) -> str:
  """The first five names and the number of the others, for a message."""
  more = f" and {len(names) - 5} more" if len(names) > 5 else ""
  return ", ".join(names[:5]) + more


def shown(value: Any) -> str:
  """The repr of a file's value, cut to a length that fits a message."""
  text = repr(value)
  return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} [...]"


def positive_integer(source: str, key: str, value: Any) -> int:
  """Checks and returns one number of a model's description.

  Raises:
    InputError: it is not an integer from 1 to 2**31 - 1.
  """
  if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
    raise InputError(
      f"{source}: {key} must be a positive integer; got {shown(value)} (2^31 or more is none). "
      f"{CORRECT}"
    )
  return value


def positive_number(source: str, key: str, value: Any) -> float:
  """Checks one number of a model's description and returns it as a float.

  Raises:
    InputError: it is not a positive number that float32 can hold.
  """
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-38 < value < 1e38:
    raise InputError(
      f"{source}: {key} must be a positive number below 1e38; got {shown(value)}. {CORRECT}"
    )
  return float(value)


def is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
  """Whether a file's value is one of the allowed ones, or an empty list or object."""
  if value is None or isinstance(value, (bool, int, float, str)):
    return value in allowed  # 0 equals False, which is intended.
  return not len(value)  # An empty list or object counts as absent.
