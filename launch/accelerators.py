"""Starting JAX, so that what a user has set for it and can mend is bad input and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from egad_jax.errors import InputError

_CHECK_SECONDS = 60
# Reads XLA_FLAGS, and nothing else of JAX.
_READS_FLAGS = "from jaxlib import xla_client; xla_client.make_cpu_client()"
# The device is there, and may be free or back at the next attempt.
_MAY_PASS = ("already in use", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "busy", "BUSY")


def import_jax(environment: Mapping[str, str] = os.environ) -> None:
  """Imports JAX.

  Raises:
    InputError: XLA_FLAGS has a flag that XLA does not know, or a JAX_… variable a bad value.
  """
  if environment.get("XLA_FLAGS", "").strip():
    _check_xla_flags(environment["XLA_FLAGS"])
  try:
    import jax  # noqa: F401
  except ValueError as error:
    raise InputError(
      f"the environment: {error}. Correct the variable JAX_…, or unset it."
    ) from error


def _check_xla_flags(flags: str) -> None:
  """Has another process read them: XLA ends the one that reads what it does not know."""
  try:
    done = subprocess.run(
      [sys.executable, "-c", _READS_FLAGS],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      timeout=_CHECK_SECONDS,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return
  lines = done.stderr.decode(errors="replace").splitlines()
  if done.returncode:
    # After the place in XLA's source. Of a value that it cannot read, it lists all its flags.
    said = [line.rpartition("] ")[2] for line in lines if "Unknown flag" in line]
    reason = said[0] if said else "XLA cannot read one of the values"
    raise InputError(f"XLA_FLAGS={flags!r}: {reason}. Correct the variable, or unset it.")


def require_devices(environment: Mapping[str, str] = os.environ) -> None:
  """Has JAX find its devices; call it when the processes have been joined.

  Raises:
    InputError: there are none of a platform that JAX_PLATFORMS names.
    RuntimeError: they are there, and cannot be used now.
  """
  import jax

  try:
    jax.devices()
  # AssertionError: of a GPU's plugin that is not there.
  except (RuntimeError, AssertionError) as error:
    text = str(error) or "JAX's plugin for it is not installed"
    if any(words in text for words in _MAY_PASS):
      raise
    platforms = environment.get("JAX_PLATFORMS", "")
    reason = text.removesuffix(
      " (set JAX_PLATFORMS='' to automatically choose an available backend)"
    )
    raise InputError(
      f"JAX_PLATFORMS={platforms!r} cannot be used here: {reason.rstrip('.')}. Set it to a "
      "platform that this machine has and that JAX is installed for, such as cpu, or unset it; "
      "extras [gpu] and [tpu] of this package install the others."
    ) from error
