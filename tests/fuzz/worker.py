"""Runs a range of inputs under a limit of memory; prints a JSON line before and after each."""

from __future__ import annotations

import faulthandler
import json
import os
import pathlib
import resource
import sys
import tempfile

from tests.fuzz.case import MAX_BYTES, run_case
from tests.fuzz.seeds import make_seeds

_HANG_SECONDS = 60.0


def _limit_memory() -> None:
  used = int(pathlib.Path("/proc/self/statm").read_text().split()[5])
  # What is asked for counts here, touched or not, so that no claim of a header goes unnoticed.
  limit = used * os.sysconf("SC_PAGE_SIZE") + MAX_BYTES
  resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def main() -> None:
  """Arguments: format, seed, first, last."""
  name, seed, first, last = sys.argv[1], *map(int, sys.argv[2:5])
  # Whatever else prints must not come between the lines.
  lines = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  with tempfile.TemporaryDirectory() as directory:
    seeds = make_seeds(pathlib.Path(directory))
  # Imports on first use and thread pools are no part of a file's cost.
  for index in range(3):
    run_case(name, -1, index, seeds)
  _limit_memory()
  for index in range(first, last):
    print(json.dumps({"start": index}), file=lines, flush=True)
    faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
    result = run_case(name, seed, index, seeds)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"index": index} | result._asdict()), file=lines, flush=True)


if __name__ == "__main__":
  main()
