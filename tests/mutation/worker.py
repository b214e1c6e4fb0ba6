"""One pytest run in a process that starts with jax imported."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

# Importing takes longer than most mutations live. Nothing of the package is among these: the plugin
# decides what that is.
PRELOAD = ("numpy", "jax", "jax.test_util", "optax", "pytest")
# Read when jax is imported or makes its devices, so they are set before the first process starts.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def start() -> multiprocessing.context.ForkServerContext:
  """Returns the maker of processes; forks happen in a server without threads or devices."""
  os.environ.update(ENVIRONMENT)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(list(PRELOAD))
  return context


def run_pytest(
  tests: Sequence[str],
  root: pathlib.Path,
  environment: Mapping[str, str],
  output: pathlib.Path,
  compiled: pathlib.Path,
) -> None:
  """Runs the tests until the first failure, in this process, which then ends with pytest's code.

  Args:
    tests: files, relative to `root`.
    root: the repository.
    environment: for the plugin.
    output: file for what pytest prints.
    compiled: directory of compiled programs; no other process may use it at the same time.
  """
  os.chdir(root)
  os.environ.update(environment)
  target = os.open(output, os.O_WRONLY | os.O_CREAT)
  for stream in (1, 2):
    os.dup2(target, stream)

  import jax
  import pytest

  jax.config.update("jax_compilation_cache_dir", str(compiled))
  command = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "tests.mutation.plugin"]
  code = pytest.main([*command, *tests])
  sys.stdout.flush()
  # Not the interpreter's own end: threads of the runtime need not be waited for.
  os._exit(code)
