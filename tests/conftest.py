"""Session settings: CPU with 8 virtual devices, before jax is imported anywhere."""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import jax

# A silent broadcast between ranks is how masks and weights go wrong.
jax.config.update("jax_numpy_rank_promotion", "raise")
