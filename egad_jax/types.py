"""Names for the trees of arrays that go between the rooms."""

from __future__ import annotations

from typing import Any

import jax

Params = Any
"""A pytree of parameters."""
Stats = dict[str, jax.Array]
"""Name -> one value per token, [...], without gradient."""
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), both scalars: the caller adds them up and divides once."""
