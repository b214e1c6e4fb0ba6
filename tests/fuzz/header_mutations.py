"""Damage inside the headers of GGUF and safetensors files, the rest of the file left whole."""

from __future__ import annotations

import json
import random
import struct

from tests.fuzz.byte_mutations import INTEGERS, mutate_bytes, odd_integer
from tests.fuzz.json_mutations import mutate_json

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# An array of arrays, deeper than any recursion.
_NESTED = struct.pack("<IQ", _ARRAY, 1) * 20_000


def gguf_chunks(data: bytes) -> tuple[list[bytes], bytes]:
  """Takes the header of a whole GGUF file apart; returns its numbers and texts, and the rest."""
  chunks: list[bytes] = []
  offset = 0

  def take(size: int) -> bytes:
    nonlocal offset
    chunks.append(data[offset : offset + size])
    offset += size
    return chunks[-1]

  def number(size: int) -> int:
    return int.from_bytes(take(size), "little")

  def text() -> None:
    take(number(8))

  def values(kind: int, count: int) -> None:
    for _ in range(count):
      text() if kind == _STRING else take(_SCALAR_BYTES[kind])

  take(8)
  num_tensors, num_keys = number(8), number(8)
  for _ in range(num_keys):
    text()
    kind = number(4)
    if kind == _ARRAY:
      kind, count = number(4), number(8)
      values(kind, count)
    else:
      values(kind, 1)
  for _ in range(num_tensors):
    text()
    for _ in range(number(4)):
      number(8)
    number(4), number(8)
  return chunks, data[offset:]


def mutate_gguf(data: bytes, rng: random.Random) -> bytes:
  """Changes one to three numbers or texts of the header of a whole GGUF file."""
  chunks, rest = gguf_chunks(data)
  # Long lists of tokens would be hit nearly always: the ends hold lengths, kinds and shapes.
  for _ in range(rng.randint(1, 3)):
    edge = rng.choice((60, len(chunks)))
    at = rng.randrange(min(edge, len(chunks)))
    at = at if rng.random() < 0.5 else len(chunks) - 1 - at
    size = len(chunks[at])
    action = rng.randrange(6)
    if action <= 2 and size in (1, 2, 4, 8):
      chunks[at] = odd_integer(rng, size)
    elif action == 3:
      chunks[at] = b""
    elif action == 4:
      chunks[at] = chunks[at] * 2 if rng.random() < 0.9 else _NESTED
    elif size:
      near = int.from_bytes(chunks[at][:8], "little") + rng.choice((-1, 1, 32, 2**20))
      chunks[at] = (near % 2**64).to_bytes(8, "little")[: min(size, 8)] + chunks[at][8:]
  return b"".join(chunks) + rest


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
  """Changes the JSON header of a whole safetensors file, or the length that is said of it."""
  size = int.from_bytes(data[:8], "little")
  header, rest = data[8 : 8 + size], data[8 + size :]
  entries = json.loads(header)
  action = rng.randrange(4)
  if action == 0:
    return odd_integer(rng, 8) + header + rest
  if action == 1:
    name = rng.choice([name for name in entries if name != "__metadata__"])
    field = rng.choice(("shape", "data_offsets"))
    entries[name][field] = [rng.choice((*INTEGERS, *entries[name][field])) for _ in range(2)]
    changed = json.dumps(entries).encode()
  elif action == 2:
    name = rng.choice([name for name in entries if name != "__metadata__"])
    entries[name]["dtype"] = rng.choice(("I64", "F64", "BOOL", "F8_E4M3", "F4", "BF16", "U8", "?"))
    changed = json.dumps(entries).encode()
  else:
    changed = mutate_json(entries, rng)
  rest = mutate_bytes(rest, rng) if rng.random() < 0.2 else rest
  return len(changed).to_bytes(8, "little") + changed + rest
