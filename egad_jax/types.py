"""Names for the trees of arrays that the subpackages pass to each other."""

from __future__ import annotations

from typing import Any

import jax

Params = Any
"""A pytree of parameter arrays."""
Stats = dict[str, jax.Array]
"""Name -> one value per token, [...], detached."""
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count), both scalars: the caller adds up each and divides once."""
