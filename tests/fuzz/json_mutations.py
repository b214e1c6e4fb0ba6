"""JSON that is whole but wrong: keys gone or doubled, other types, numbers out of all bounds."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from tests.fuzz.byte_mutations import mutate_bytes

# What no json.dumps would write: put in as text.
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
_RAW = (
  "NaN",
  "Infinity",
  "-Infinity",
  "1e999",
  "-0.0",
  "1" + "0" * 400,
  "9" * 5000,
  "1e-999",
  "18446744073709551616",
  "9223372036854775807",
  "4294967295",
  "4294967294",
  "2147483647",
  "-1",
  "0",
  '"\\ud800"',
  '"\\u0000"',
  '"\\ud83d\\ude00"',
  '"\\u202e"',
  "[" * 900 + "]" * 900,
  "[" * 100_000,
  '{"a":' * 900 + "1" + "}" * 900,
  '"' + "x" * 100_000 + '"',
  '""',
  "nul",
)
_VALUES: tuple[Any, ...] = (
  None,
  True,
  False,
  [],
  {},
  "",
  "x",
  1,
  1.5,
  [None],
  [[]],
  {"": {}},
  "../../../etc/passwd",
  "/etc/passwd",
  "\x1b[31m",
  "a" * 300,
  ["a", 1],
  {"content": 3},
  "auto",
  "1",
  "NaN",
)


def mutate_json(value: Any, rng: random.Random) -> bytes:
  """Damages a JSON value; returns the text of it.

  Args:
    value: the whole value.
    rng: decides how and where.
  """
  value = copy.deepcopy(value)
  raw: list[str] = []
  for _ in range(rng.randint(1, 3)):
    _change(value, rng, raw)
  text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
  for number in raw:
    text = text.replace(f'"{_MARK}"', number, 1).replace(json.dumps(_MARK), number, 1)
  if rng.random() < 0.1 and isinstance(value, dict) and value:
    key = json.dumps(rng.choice(sorted(value)))
    text = f"{text[:-1]}, {key}: {rng.choice(_RAW)}}}"
  data = text.encode("utf-8", "surrogatepass")
  return mutate_bytes(data, rng) if rng.random() < 0.1 else data


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
  keys = value if isinstance(value, dict) else range(len(value))
  for key in keys:
    found.append((value, key))
    if isinstance(value[key], (dict, list)):
      _places(value[key], found)
  return found


def _change(value: Any, rng: random.Random, raw: list[str]) -> None:
  # From the top half of the time: what is deep down is mostly one long list.
  places = _places(value, [])
  if rng.random() < 0.5:
    places = [place for place in places if place[0] is value] or places
  if not places:
    return
  container, key = rng.choice(places)
  action = rng.randrange(6)
  if action == 0:
    del container[key]
  elif action == 1:
    raw.append(rng.choice(_RAW))
    container[key] = _MARK
  elif action == 2:
    container[key] = rng.choice(_VALUES)
  elif action == 3:
    other, place = rng.choice(places)
    container[key] = copy.deepcopy(other[place])
  elif action == 4 and isinstance(container[key], str):
    container[key] = mutate_bytes(container[key].encode(), rng).decode("utf-8", "replace")
  elif action == 4 and isinstance(container[key], (int, float)):
    container[key] = container[key] * rng.choice((-1, 0, 2, 1000, 2**31, 0.5)) + rng.choice((0, 1))
  elif isinstance(container, dict):
    container[rng.choice(("", "x", "type", "auto_map", "dropout"))] = rng.choice(_VALUES)
  else:
    container.insert(key, rng.choice(_VALUES))
