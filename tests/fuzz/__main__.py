"""Damages inputs of every format and reads them: all are accepted or refused with one message.

  python -m tests.fuzz --count 12000             all formats, and a table
  python -m tests.fuzz --only GGUF --count 500   one of them
  python -m tests.fuzz --only GGUF --case 17     one input, here, with its traceback

The same seed and number make the same input, whatever the count. Each format runs in a process of
its own that may ask for 1 GiB more than it starts with; one that dies or hangs is counted, and the
next goes on. Exit code 1 when anything is neither accepted nor refused cleanly.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.fuzz.case import run_case
from tests.fuzz.formats import FORMATS
from tests.fuzz.seeds import make_seeds

_HEADER = "| format | files | accepted | refused cleanly | anything else | memory | time |"


def run_format(name: str, seed: int, count: int) -> Iterator[dict[str, Any]]:
  """Yields the results of inputs 0 to `count`, in order."""
  first = 0
  while first < count:
    with tempfile.TemporaryFile("w+") as errors:
      worker = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.worker", name, str(seed), str(first), str(count)],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
      )
      assert worker.stdout is not None
      started = None
      for line in worker.stdout:
        record = json.loads(line)
        if "start" in record:
          started = record["start"]
        else:
          yield record
          first = record["index"] + 1
      code = worker.wait()
      errors.seek(0)
      tail = errors.read()[-3000:]
    if first < count:
      if started is None or started < first:
        raise RuntimeError(f"the worker of {name} ended with {code} by itself:\n{tail}")
      detail = f"the process ended with code {code}:\n{tail}"
      yield {"index": started, "outcome": "bug", "seconds": 0.0, "memory": 0, "detail": detail}
      first = started + 1


def main() -> int:
  """Runs what the arguments ask for."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--count", type=int, default=12_000, help="inputs in all")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", choices=FORMATS, help="one format")
  parser.add_argument("--case", type=int, help="one input of that format")
  options = parser.parse_args()
  if options.case is not None:
    with tempfile.TemporaryDirectory() as directory:
      seeds = make_seeds(pathlib.Path(directory))
    print(*run_case(options.only, options.seed, options.case, seeds), sep="\n")
    return 0
  names = [options.only] if options.only else list(FORMATS)
  shares = sum(FORMATS[name].share for name in names)
  print(f"{_HEADER}\n|---|---|---|---|---|---|---|", flush=True)
  total: collections.Counter[str] = collections.Counter()
  worst_memory, worst_seconds = 0, 0.0
  for name in names:
    outcomes: collections.Counter[str] = collections.Counter()
    memory, seconds = 0, 0.0
    for result in run_format(name, options.seed, -(-options.count * FORMATS[name].share // shares)):
      outcomes[result["outcome"]] += 1
      memory, seconds = max(memory, result["memory"]), max(seconds, result["seconds"])
      if result["outcome"] == "bug":
        print(f"{name}, case {result['index']}: {result['detail']}", file=sys.stderr, flush=True)
    _print_row(name, outcomes, memory, seconds)
    total += outcomes
    worst_memory, worst_seconds = max(worst_memory, memory), max(worst_seconds, seconds)
  _print_row("all", total, worst_memory, worst_seconds)
  return 1 if total["bug"] else 0


def _print_row(name: str, outcomes: collections.Counter[str], memory: int, seconds: float) -> None:
  counts = " | ".join(str(outcomes[key]) for key in ("accepted", "refused", "bug"))
  row = f"| {name} | {outcomes.total()} | {counts} | {memory / 2**20:.0f} MiB | {seconds:.1f} s |"
  print(row, flush=True)


if __name__ == "__main__":
  sys.exit(main())
