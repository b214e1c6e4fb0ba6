"""What is done with each key of a foreign file that describes a model (tables in `key_tables`).

A key is read, or harmless whatever its value (it does not touch what the model computes), or
neutral at some values and refused at all others, because these would make it another model. A key
in no table is refused where the format is closed. Elsewhere it is returned, to be named: a format
that grows with each release of a library cannot be closed.
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
    harmless: keys that do not touch what the model computes.
    neutral: key -> the values at which it is as if it were absent, the usual one first.
    remedy: what to do about a value that is refused.
    hints: key -> what to do about it, where that is something else.
  """

  read: frozenset[str]
  harmless: frozenset[str]
  neutral: Mapping[str, tuple[Any, ...]] = types.MappingProxyType({})
  remedy: str = ""
  hints: Mapping[str, str] = types.MappingProxyType({})

  def under(self, prefix: str) -> Table:
    """The same table with `prefix` in front of every key."""
    return self._replace(
      read=frozenset(prefix + key for key in self.read),
      harmless=frozenset(prefix + key for key in self.harmless),
      neutral={prefix + key: values for key, values in self.neutral.items()},
    )

  def departures(self, data: Mapping[str, Any]) -> list[str]:
    """The keys of `neutral` that `data` has at another value, in the order of the file."""
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
    """Refuses what would be another model than the one that is computed.

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

  Raises:
    InputError: there are any.
  """
  if unknown:
    raise InputError(f"{source} has keys that are not known: {listed(unknown)}. {remedy}")


def listed(names: list[str]) -> str:
  """The first few of many names, for a message."""
  more = f" and {len(names) - 5} more" if len(names) > 5 else ""
  return ", ".join(names[:5]) + more


def shown(value: Any) -> str:
  """A value of a file, short enough for a message."""
  text = repr(value)
  return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} [...]"


def positive_integer(source: str, key: str, value: Any) -> int:
  """Checks one number of a model's description.

  Raises:
    InputError: if it is not a positive integer.
  """
  if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
    raise InputError(
      f"{source}: {key} must be a positive integer; got {shown(value)} (2^31 or more is none). "
      f"{CORRECT}"
    )
  return value


def positive_number(source: str, key: str, value: Any) -> float:
  """Checks one number of a model's description.

  Raises:
    InputError: if it is not a positive number that float32 holds.
  """
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-38 < value < 1e38:
    raise InputError(
      f"{source}: {key} must be a positive number below 1e38; got {shown(value)}. {CORRECT}"
    )
  return float(value)


def is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
  """Whether a value of a file is one of these, or as good as absent."""
  if value is None or isinstance(value, (bool, int, float, str)):
    return value in allowed  # 0 equals False, as is meant here.
  return not len(value)  # An empty list or object is as absent as null.
