"""Names for the trees of arrays that pass between the subpackages."""

from __future__ import annotations

from typing import Any

import jax

Params = Any
"""A pytree of parameter arrays."""
Stats = dict[str, jax.Array]
"""{name: [...]}, one value per token, without gradient."""
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""{name: (sum, count)}, both scalars: the caller adds each up and divides once."""
