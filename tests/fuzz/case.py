"""One damaged input: made from its number alone, read, and judged."""

from __future__ import annotations

import pathlib
import random
import resource
import tempfile
import time
import traceback
from typing import NamedTuple

from egad_jax.errors import InputError
from tests.fuzz.formats import FORMATS
from tests.fuzz.seeds import Seeds

MAX_SECONDS = 5.0
MAX_BYTES = 2**30
_MAX_MESSAGE = 2_000_000


class Result(NamedTuple):
  """What became of one input.

  Attributes:
    outcome: "accepted", "refused" (by an InputError) or "bug".
    seconds: of processor time, child processes included.
    memory: bytes of the peak above what was resident before.
    detail: of a bug: its traceback.
  """

  outcome: str
  seconds: float
  memory: int
  detail: str


def run_case(name: str, seed: int, index: int, seeds: Seeds) -> Result:
  """Makes input number `index` of a format and reads it."""
  rng = random.Random(f"{seed}/{name}/{index}")
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory)
    given = FORMATS[name].write(path, rng, seeds)
    _reset_peak()
    before, start = _status("VmRSS"), _seconds()
    outcome, detail = "accepted", ""
    try:
      FORMATS[name].read(path, given)
    except InputError as error:
      outcome = "refused"
      if len(str(error)) > _MAX_MESSAGE:
        outcome, detail = "bug", f"a message of {len(str(error))} characters"
    # A panic of Rust is a BaseException.
    except BaseException as error:
      if isinstance(error, KeyboardInterrupt):
        raise
      outcome, detail = "bug", traceback.format_exc()
    seconds, memory = _seconds() - start, max(0, _status("VmHWM") - before)
  if outcome != "bug" and (seconds > MAX_SECONDS or memory > MAX_BYTES):
    outcome, detail = "bug", f"{seconds:.1f} seconds, {memory / 2**20:.0f} MiB"
  return Result(outcome, seconds, memory, detail)


def _seconds() -> float:
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


def _status(key: str) -> int:
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(f"{key}:"):
      return int(line.split()[1]) * 1024
  raise KeyError(key)


def _reset_peak() -> None:
  pathlib.Path("/proc/self/clear_refs").write_text("5")
