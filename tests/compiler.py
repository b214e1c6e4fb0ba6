"""Flags of XLA under which the tests run: programs are compiled quickly, not to run quickly."""

from __future__ import annotations

import os
from importlib import metadata

# Most of a test's time is compiling programs that then run for a millisecond. The passes over the
# program stay as they are; only the machine code is made without effort.
_QUICK = [
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_parallel_codegen_split_count=1",
]
# The older emitters need a quarter of the time. Newer compilers have only the new ones, and an
# unknown flag ends the process.
if tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2]) < (0, 11):
  _QUICK.append("--xla_cpu_use_fusion_emitters=false")


def xla_flags(devices: int) -> str:
  """Returns XLA_FLAGS for a process with so many virtual devices.

  With EGAD_TEST_COMPILER=default in the environment the compiler is left as users have it.
  """
  quick = [] if os.environ.get("EGAD_TEST_COMPILER") == "default" else _QUICK
  return " ".join([*quick, f"--xla_force_host_platform_device_count={devices}"])
