"""Damage that knows nothing of a format: flipped bits, cuts, repetitions, odd integers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

INTEGERS = (0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1, 7, 255)
_MAX_CHUNK = 4096


def odd_integer(rng: random.Random, size: int) -> bytes:
  """One of `INTEGERS`, cut to `size` bytes, little-endian."""
  return struct.pack("<Q", rng.choice(INTEGERS) % 2**64)[:size]


def mutate_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
  """Damages bytes in one to four places.

  Args:
    data: what to damage.
    rng: decides how and where.
    others: files whose parts may be spliced in.
  """
  result = bytearray(data)
  for _ in range(rng.randint(1, 4)):
    rng.choice(_DAMAGES)(result, rng, others or (data,))
  return bytes(result)


def _place(data: bytearray, rng: random.Random) -> int:
  # Headers come first and are where damage is told from data.
  end = min(len(data), 512) if rng.random() < 0.5 else len(data)
  return rng.randrange(end + 1)


def _flip(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
  at = _place(data, rng)
  if at < len(data):
    data[at] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
  at, size = _place(data, rng), rng.choice((1, 2, 4, 8))
  data[at : at + size] = odd_integer(rng, size)


def _truncate(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
  del data[_place(data, rng) :]


def _delete(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
  at = _place(data, rng)
  del data[at : at + rng.randint(1, 64)]


def _repeat(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
  at = _place(data, rng)
  chunk = data[at : at + rng.randint(1, 64)]
  data[at:at] = (chunk * rng.choice((1, 2, 1000)))[:_MAX_CHUNK]


def _splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
  other = rng.choice(others)
  start = rng.randrange(len(other) + 1)
  at = _place(data, rng)
  data[at : at + rng.choice((0, 64))] = other[start : start + rng.randint(1, _MAX_CHUNK)]


def _noise(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
  at = _place(data, rng)
  data[at:at] = rng.randbytes(rng.randint(1, 32))


_DAMAGES: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], None], ...] = (
  _flip,
  _flip,
  _overwrite,
  _overwrite,
  _truncate,
  _delete,
  _repeat,
  _splice,
  _noise,
)
