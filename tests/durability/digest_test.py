"""A digest sees every change of an array, and nothing of where the array lies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egad_jax.durability.digest import _program, digests


def digest(x):
  return digests({"x": x})["x"]


def mesh(*shape):
  return jax.make_mesh(shape, ("a", "b")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def place(x, on, *spec):
  return jax.device_put(x, NamedSharding(on, PartitionSpec(*spec)))


TREE = {
  "bool": np.arange(24).reshape(8, 3) % 5 < 2,
  "int32": np.arange(-32, 32, dtype=np.int32).reshape(8, 8),
  "bfloat16": np.asarray(np.linspace(-3, 3, 48).reshape(8, 6), jnp.bfloat16),
  "float32": np.linspace(-1, 1, 512, dtype=np.float32).reshape(4, 8, 16),
  "int4": np.asarray(np.arange(16) % 8, jnp.int4),
  "complex64": np.arange(8, dtype=np.complex64) * 1j,
  "scalar": np.float32(3.5),
  "empty": np.zeros((0, 8), np.float32),
}


def test_is_the_same_on_every_mesh():
  expected = digests(TREE)
  assert set(expected) == set(TREE)
  assert all(len(value) == 16 for value in expected.values())
  assert len(set(expected.values())) == len(TREE)
  assert expected == digests(jax.tree.map(jnp.asarray, TREE))
  for on, axes in ((mesh(8), ("a",)), (mesh(4, 2), ("a", "b")), (mesh(2, 4), (None, "a"))):
    placed = {}
    for path, x in TREE.items():
      spec = [
        a if a and n % on.shape[a] == 0 else None for a, n in zip(axes, x.shape, strict=False)
      ]
      placed[path] = place(x, on, *spec)
    assert any(not x.is_fully_replicated for x in placed.values())
    assert digests(placed) == expected


def test_reads_typed_keys():
  keys = jax.random.split(jax.random.key(0), 4)
  assert digest(keys) == digest(jax.random.split(jax.random.key(0), 4))
  assert digest(keys) != digest(jax.random.split(jax.random.key(1), 4))
  assert digest(keys) == digest(jax.random.key_data(keys))


@pytest.mark.parametrize("name", ["int32", "bfloat16", "float32", "scalar"])
def test_sees_every_bit(name):
  base = np.atleast_1d(TREE[name]).copy()
  expected, seen = digest(base), set()
  places = {0, base.size // 2, base.size - 1}
  for place_ in places:
    for bit in range(8 * base.itemsize):
      changed = base.copy()
      octets = changed.reshape(-1).view(np.uint8)
      octets[place_ * base.itemsize + bit // 8] ^= 1 << bit % 8
      seen.add(digest(changed))
  assert expected not in seen
  assert len(seen) == len(places) * 8 * base.itemsize


def test_sees_values_that_change_places():
  base = np.asarray(jax.random.normal(jax.random.key(0), (6, 8)))
  expected = digest(base)
  changes = {
    "two neighbours": base[:, [1, 0, *range(2, 8)]],
    "two rows": base[[3, 1, 2, 0, 4, 5]],
    "rolled": np.roll(base, 1),
  }
  for name, changed in changes.items():
    assert digest(changed) != expected, name
  # A number and its negative differ by 2**31, which an even factor would cancel.
  signs = np.ones(16, np.float32)
  signs[3] = -1
  assert digest(signs) != digest(np.roll(signs, 1)) != digest(np.roll(signs, 2))


def test_sees_a_zero_that_became_negative_and_a_not_a_number_that_is_another():
  x = np.zeros(4, np.float32)
  assert digest(x) != digest(-x)
  nans = np.full(4, np.nan, np.float32)
  other = nans.copy()
  other.view(np.uint32)[2] ^= 1
  assert digest(nans) != digest(other)


def test_takes_no_memory():
  x = place(np.zeros((8, 256, 256), np.float32), mesh(8), "a")
  memory = _program(x.sharding.mesh).lower([x]).compile().memory_analysis()
  assert memory.temp_size_in_bytes < x.nbytes / 64


def test_of_nothing():
  assert digests({}) == {}
